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

// On a device: replays of a graph of one run, with the L2 cache flushed before each.
Result<Timing> measure(BenchProblem& problem, const TimingOptions& options);

// What the machine can do at best, measured in the same run.
struct Ceilings {
  double float32_flops = 0.0;   // multiply-adds count twice; all threads together
  double bfloat16_flops = 0.0;  // 0: no such instruction; on a device products of 16-bit types on tensor cores
  double dram_bytes = 0.0;      // read rate
  double copy_bytes = 0.0;      // read and written together; a device's
  double launch_seconds = 0.0;  // a graph of an empty kernel, which is part of every time on a device
};

// Where the time must go at least, and how near a measured time came to it.
struct Roofline {
  bool known = false;
  bool memory_bound = false;
  double floor_seconds = 0.0;
};
// Unknown where the ceilings are. Cache updates on a device are held against a copy of as many bytes that was timed the
// same way: `copy_seconds`, if it was.
Roofline roofline(const BenchConfig& config, const Work& work, const Ceilings& ceilings, double copy_seconds);
// The time of such a copy; 0 for other operations and on the CPU.
Result<double> measure_copy(const BenchProblem& problem);

}  // namespace quire::cli
