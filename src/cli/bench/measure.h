// Timing of a benchmark problem.
#pragma once

#include <cstdint>

#include "cli/bench/problem.h"
#include "quire/status.h"

namespace quire::cli {

struct TimingOptions {
  double min_seconds = 0.5;      // runs go on until so much time was measured,
  std::int32_t min_repeats = 5;  // but at least so often,
  std::int32_t max_repeats = 2000;
  std::int32_t warm_up = 1;  // after so many runs that do not count
};

struct Timing {
  double median_seconds = 0.0;
  double best_seconds = 0.0;
  std::int32_t repeats = 0;
};

Result<Timing> measure(BenchProblem& problem, const TimingOptions& options);

// What the machine can do at best, measured in the same run.
struct Ceilings {
  double float32_flops = 0.0;   // multiply-adds count twice; all threads together
  double bfloat16_flops = 0.0;  // 0: no such instruction
  double dram_bytes = 0.0;      // read rate
};

// Where the time must go at least, and how near a measured time came to it.
struct Roofline {
  bool known = false;
  bool memory_bound = false;
  double floor_seconds = 0.0;
};
// Unknown where the ceilings are, and on other devices than the CPU.
Roofline roofline(const BenchConfig& config, const Work& work, const Ceilings& ceilings);

}  // namespace quire::cli
