// Timing: warm-up, repeats, median; and the roofline of a problem.
#include "cli/bench/measure.h"

#include <algorithm>
#include <chrono>
#include <vector>

namespace quire::cli {

Result<Timing> measure(BenchProblem& problem, const TimingOptions& options) {
  using Clock = std::chrono::steady_clock;
  for (std::int32_t i = 0; i < options.warm_up; ++i) QUIRE_RETURN_IF_ERROR(problem.run());
  std::vector<double> seconds;
  double total = 0.0;
  const auto enough = [&] {
    const auto repeats = static_cast<std::int32_t>(seconds.size());
    return repeats >= options.max_repeats || (repeats >= options.min_repeats && total >= options.min_seconds);
  };
  while (!enough()) {
    const auto start = Clock::now();
    QUIRE_RETURN_IF_ERROR(problem.run());
    seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
    total += seconds.back();
  }
  std::sort(seconds.begin(), seconds.end());
  return Timing{.median_seconds = seconds[seconds.size() / 2],
                .best_seconds = seconds.front(),
                .repeats = static_cast<std::int32_t>(seconds.size())};
}

Roofline roofline(const BenchConfig& config, const Work& work, const Ceilings& ceilings) {
  // float16 has no product of its own on CPUs: it is computed in float32.
  const bool bfloat16 = config.dtype == DType::kBFloat16 && config.runtime.isa == Isa::kAvx512Bf16;
  const double peak = bfloat16 ? ceilings.bfloat16_flops : ceilings.float32_flops;
  const bool known = config.runtime.backplane == Backplane::kCpu && peak > 0.0 && ceilings.dram_bytes > 0.0;
  if (!known) return {};
  const double compute = work.flops / peak;
  const double memory = work.bytes / ceilings.dram_bytes;
  return {.known = true, .memory_bound = memory > compute, .floor_seconds = std::max(compute, memory)};
}

}  // namespace quire::cli
