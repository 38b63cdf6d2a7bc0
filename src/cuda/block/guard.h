// Reports bad device metadata without stopping anything: the first fault since the host last looked is kept.
#pragma once

#include "core/macros.h"
#include "cuda/fault.h"

namespace quire::cuda {

__device__ QUIRE_INLINE void report_here(FaultRecord* record, Fault fault, std::int32_t index, std::int64_t got,
                                         std::int64_t limit) {
  if (atomicCAS(&record->fault, 0u, static_cast<std::uint32_t>(Fault::kWriting)) != 0u) return;
  record->index = index;
  record->got = got;
  record->limit = limit;
  __threadfence_system();
  *static_cast<volatile std::uint32_t*>(&record->fault) = static_cast<std::uint32_t>(fault);
}

// Not inlined: it never runs, and code that never runs should not lie between code that does. Kernels with wgmma take
// the inlined form: calls would serialise their products.
__device__ __noinline__ inline void report(FaultRecord* record, Fault fault, std::int32_t index, std::int64_t got,
                                           std::int64_t limit) {
  report_here(record, fault, index, got, limit);
}

}  // namespace quire::cuda
