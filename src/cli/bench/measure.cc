// Timing: warm-up, repeats, median; and the roofline of a problem.
#include "cli/bench/measure.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "cuda/timing.h"

namespace quire::cli {
namespace {

bool on_cuda(const BenchConfig& config) { return config.runtime.backplane == Backplane::kCuda; }

bool is_update(BenchOp op) { return op == BenchOp::kCacheUpdate || op == BenchOp::kRopeCacheUpdate; }

Timing timing_of(std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  return {.median_seconds = seconds[seconds.size() / 2],
          .best_seconds = seconds.front(),
          .repeats = static_cast<std::int32_t>(seconds.size())};
}

}  // namespace

Result<Timing> measure(BenchProblem& problem, const TimingOptions& options) {
  if (on_cuda(problem.config())) {
    const cuda::TimingPolicy policy{.min_seconds = options.min_seconds / 10,  // devices are steadier
                                    .min_repeats = std::max(options.min_repeats, 21),
                                    .max_repeats = options.max_repeats};
    QUIRE_ASSIGN_OR_RETURN(std::vector<double> seconds,
                           cuda::time_graph(
                               problem.config().runtime.stream, [&] { return problem.run(); }, policy));
    return timing_of(std::move(seconds));
  }
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
  return timing_of(std::move(seconds));
}

Result<double> measure_copy(const BenchProblem& problem) {
  if (!on_cuda(problem.config()) || !is_update(problem.config().op)) return 0.0;
  return cuda::time_copy(problem.config().runtime.stream, static_cast<std::int64_t>(problem.work().bytes),
                         {.min_seconds = 0.0, .min_repeats = 21});
}

Roofline roofline(const BenchConfig& config, const Work& work, const Ceilings& ceilings, double copy_seconds) {
  if (copy_seconds > 0.0) return {.known = true, .memory_bound = true, .floor_seconds = copy_seconds};
  // float16 has no product of its own on CPUs: it is computed in float32.
  const bool bfloat16 = on_cuda(config) ? config.dtype != DType::kFloat32
                                        : config.dtype == DType::kBFloat16 && config.runtime.isa == Isa::kAvx512Bf16;
  const double peak = bfloat16 ? ceilings.bfloat16_flops : ceilings.float32_flops;
  const bool known = config.runtime.backplane != Backplane::kReference && peak > 0.0 && ceilings.dram_bytes > 0.0;
  if (!known) return {};
  const double compute = work.flops / peak;
  const double memory = work.bytes / ceilings.dram_bytes;
  return {.known = true, .memory_bound = memory > compute, .floor_seconds = std::max(compute, memory)};
}

}  // namespace quire::cli
