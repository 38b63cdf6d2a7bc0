// The one symbol of an ISA's object: its table of kernels.
#pragma once

#include "cpu/kernel/attend.inl.h"

#define QUIRE_TABLE_NAME(isa) QUIRE_TABLE_NAME_INNER(isa)
#define QUIRE_TABLE_NAME_INNER(isa) kernel_table_##isa

namespace quire::cpu {
namespace {

inline void pack_keys(const PackTask& task) { codec(task.compute, task.storage).keys(task); }
inline void pack_values(const PackTask& task) { codec(task.compute, task.storage).values(task); }

inline void gemm(const GemmTask& task) {
  if constexpr (Simd::kHasBf16) {
    if (task.compute == Compute::kBFloat16) {
      gemm_of<BFloat16>(task);
      return;
    }
  }
  gemm_of<Float32>(task);
}

inline void map_exp2(const float* in, float* out, std::int32_t count) {
  for (std::int32_t i = 0; i < count; i += Simd::kLanes) Simd::store(out + i, Number::exp2(Simd::load(in + i)));
}
inline void map_tanh(const float* in, float* out, std::int32_t count) {
  for (std::int32_t i = 0; i < count; i += Simd::kLanes) Simd::store(out + i, Number::tanh(Simd::load(in + i)));
}
inline void map_log(const float* in, float* out, std::int32_t count) {
  for (std::int32_t i = 0; i < count; i += Simd::kLanes) Simd::store(out + i, Number::log(Simd::load(in + i)));
}

constexpr KernelTable kTable{.has_bf16 = Simd::kHasBf16,
                             .attend = attend,
                             .merge = merge_chunk,
                             .quantize_blocks = quantize_token,
                             .pack_keys = pack_keys,
                             .pack_values = pack_values,
                             .gemm = gemm,
                             .exp2 = map_exp2,
                             .tanh = map_tanh,
                             .log = map_log};

}  // namespace

const KernelTable* QUIRE_TABLE_NAME(QUIRE_ISA_NAME)();
const KernelTable* QUIRE_TABLE_NAME(QUIRE_ISA_NAME)() { return &kTable; }

}  // namespace quire::cpu
