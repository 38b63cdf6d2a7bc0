// Times the attention kernels: replays of a CUDA graph with the L2 cache written before each, medians, beside ceilings
// that are measured in the same run; and once more with a cache of lines that were only read ("clean"). gpu_bench
// [FILTER [TRACES]]: only rows whose name contains FILTER; the ragged batch is drawn from the traces of the folder
// TRACES (tests/data/traces).
#include <algorithm>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "cuda/timing.h"
#include "gpu/bench/batch.h"
#include "gpu/bench/work.h"
#include "quire/cuda.h"

namespace quire::bench {
namespace {

constexpr int kRepeats = 31;
constexpr int kPrefillRepeats = 7;

struct Timing {
  double us = 0.0;
  double clean_us = 0.0;  // with an L2 cache of lines that were only read
  double bytes = 0.0;
  double flops = 0.0;
};

Result<double> median_us(const Batch& batch, void* stream, int repeats, cuda::Flush flush) {
  QUIRE_ASSIGN_OR_RETURN(
      std::vector<double> seconds,
      cuda::time_graph(stream, [&] { return batch.run(); },
                       {.min_seconds = 0.0, .min_repeats = repeats, .max_repeats = repeats, .flush = flush}));
  std::sort(seconds.begin(), seconds.end());
  return 1e6 * seconds[seconds.size() / 2];
}

Result<Timing> time_work(const Work& work, void* stream) {
  QUIRE_ASSIGN_OR_RETURN(const Batch batch, Batch::make(work, stream));
  const int repeats = work.is_prefill ? kPrefillRepeats : kRepeats;
  Timing timing{.bytes = batch.bytes(), .flops = batch.flops()};
  QUIRE_ASSIGN_OR_RETURN(timing.us, median_us(batch, stream, repeats, cuda::Flush::kWritten));
  QUIRE_ASSIGN_OR_RETURN(timing.clean_us, median_us(batch, stream, repeats, cuda::Flush::kRead));
  return timing;
}

std::string number(double value, int digits) {
  char text[64];
  std::snprintf(text, sizeof(text), "%.*f", digits, value);
  return text;
}

// What was asked for, and whether the row has it.
class Judge {
 public:
  explicit Judge(double read_bytes) : read_bytes_(read_bytes) {}

  std::string judge(const Work& work, const Timing& timing) {
    times_[work.name] = timing.us;
    const Goal& goal = work.goal;
    const auto verdict = [](const std::string& text, bool met) { return text + (met ? ": met" : ": missed"); };
    if (goal.us > 0.0) return verdict("<= " + number(goal.us, 0) + " us", timing.us <= goal.us);
    if (goal.read_fraction > 0.0) {
      return verdict(">= " + number(100.0 * goal.read_fraction, 0) + "%", fraction(timing) >= goal.read_fraction);
    }
    if (goal.tflops > 0.0) {
      return verdict(">= " + number(goal.tflops, 0) + " TFLOP/s", timing.flops / timing.us * 1e-6 >= goal.tflops);
    }
    if (goal.beside.empty()) return {};
    const std::string text = "<= " + number(goal.ratio, 2) + " of " + std::string(goal.beside);
    const auto found = times_.find(goal.beside);
    if (found == times_.end()) return text + ": not timed";
    const double ratio = timing.us / found->second;
    return verdict(text + " (" + number(ratio, 2) + ")", ratio <= goal.ratio);
  }
  double fraction(const Timing& timing) const { return timing.bytes / timing.us * 1e6 / read_bytes_; }

 private:
  double read_bytes_;
  std::map<std::string, double, std::less<>> times_;
};

Status run(const std::string& filter, const std::string& traces) {
  QUIRE_ASSIGN_OR_RETURN(const cuda::DeviceInfo info, cuda::device_info());
  QUIRE_ASSIGN_OR_RETURN(const cuda::Stream stream, cuda::Stream::create());
  QUIRE_ASSIGN_OR_RETURN(const std::vector<Work> rows, all_work(traces));
  QUIRE_ASSIGN_OR_RETURN(const cuda::DeviceCeilings ceilings, cuda::measure_ceilings(stream.get()));
  std::printf("%s, %d multiprocessors\n", info.name.c_str(), info.multiprocessors);
  std::printf("ceilings: read-only %.3f TB/s, copy %.3f TB/s (read + write), bf16 products %.0f TFLOP/s, ",
              ceilings.read_bytes * 1e-12, ceilings.copy_bytes * 1e-12, ceilings.half_flops * 1e-12);
  std::printf("an empty kernel %.1f us\n", ceilings.launch_seconds * 1e6);
  std::printf("| %-36s | %9s | %7s | %6s | %7s | %9s | goal | vLLM, FA3 |\n|---|---:|---:|---:|---:|---:|---|---|\n",
              "work", "us", "TB/s", "read", "TFLOP/s", "clean, us");
  Judge judge(ceilings.read_bytes);
  for (const Work& work : rows) {
    if (work.name.find(filter) == std::string::npos) continue;
    QUIRE_ASSIGN_OR_RETURN(const Timing timing, time_work(work, stream.get()));
    std::printf("| %-36s | %9.1f | %7.3f | %5.1f%% | %7.1f | %9.1f | %s | %.*s |\n", work.name.c_str(), timing.us,
                timing.bytes / timing.us * 1e-6, 100.0 * judge.fraction(timing), timing.flops / timing.us * 1e-6,
                timing.clean_us, judge.judge(work, timing).c_str(), static_cast<int>(work.reference.size()),
                work.reference.data());
    std::fflush(stdout);
  }
  return {};
}

}  // namespace
}  // namespace quire::bench

int main(int argc, char** argv) {
  const quire::Status status = quire::bench::run(argc > 1 ? argv[1] : "", argc > 2 ? argv[2] : "tests/data/traces");
  if (status.ok()) return 0;
  std::fprintf(stderr, "gpu_bench: %s\n", status.to_string().c_str());
  return 1;
}
