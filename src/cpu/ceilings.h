// What this machine can do at best, measured in the process whose kernels are judged by it.
#pragma once

#include "quire/status.h"

namespace quire::cpu {

// The best and the median of many short windows.
struct Rate {
  double best = 0.0;
  double median = 0.0;
};

// One thread, and num_threads at once. A rate is 0 where the processor lacks the instruction.
struct Ceilings {
  int num_threads = 1;
  Rate fma_one{};  // float32 fused multiply-adds of the widest vectors, GFLOP/s
  Rate fma_all{};
  Rate bf16_one{};  // vdpbf16ps, GFLOP/s
  Rate bf16_all{};
  Rate read_one{};  // memory reads, GB/s
  Rate read_all{};
};

// Takes about a second and 256 MB a thread (1 GB at most, 64 MB a thread at least). num_threads 0: as OpenMP decides.
// Errors: no memory.
Result<Ceilings> measure_ceilings(int num_threads = 0);

}  // namespace quire::cpu
