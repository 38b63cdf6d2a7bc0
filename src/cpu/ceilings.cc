// Measures peak arithmetic and memory reads. The loops are single asm blocks over named registers, so that no compiler
// can spill or drop them, and the windows are short, because a shared machine gives a core away for milliseconds at a
// time.
#include "cpu/ceilings.h"

#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "cpu/features.h"

namespace quire::cpu {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kComputeWindows = 200;
constexpr std::int64_t kComputeSteps = 5000;
constexpr int kChains = 12;  // of dependent operations side by side: enough for latency 6 and two units
constexpr std::int64_t kMegabyte = 1 << 20;
constexpr std::int64_t kReadWindow = 16 * kMegabyte;
constexpr int kReadPasses = 2;

#if defined(__x86_64__)
// Each step runs the twelve instructions once.
#define QUIRE_TWELVE_CHAINS(instruction, a, b, width)                                                    \
  "1:\n\t.irp r,4,5,6,7,8,9,10,11,12,13,14,15\n\t" instruction " %%" width a ", %%" width b ", %%" width \
  "\\r\n\t"                                                                                              \
  ".endr\n\tdec %0\n\tjnz 1b\n\t"
#define QUIRE_CHAIN_CLOBBERS                                                                                          \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", \
      "xmm14", "xmm15", "cc"

__attribute__((target("avx512f,avx512bf16"))) void run_bf16(std::int64_t steps) {
  __asm__ volatile("vzeroall\n\t" QUIRE_TWELVE_CHAINS("vdpbf16ps", "0", "1", "zmm")
                   : "+r"(steps)::QUIRE_CHAIN_CLOBBERS);
}
__attribute__((target("avx512f"))) void run_fma512(std::int64_t steps) {
  __asm__ volatile("vzeroall\n\t" QUIRE_TWELVE_CHAINS("vfmadd231ps", "0", "1", "zmm")
                   : "+r"(steps)::QUIRE_CHAIN_CLOBBERS);
}
__attribute__((target("avx2,fma"))) void run_fma256(std::int64_t steps) {
  __asm__ volatile("vzeroall\n\t" QUIRE_TWELVE_CHAINS("vfmadd231ps", "0", "1", "ymm")
                   : "+r"(steps)::QUIRE_CHAIN_CLOBBERS);
}
__attribute__((target("avx2"))) void read_memory(const std::byte* from, std::int64_t bytes) {
  std::int64_t steps = bytes / 256;
  __asm__ volatile(
      "1:\n\tvmovaps (%1), %%ymm0\n\tvmovaps 32(%1), %%ymm1\n\tvmovaps 64(%1), %%ymm2\n\tvmovaps 96(%1), %%ymm3\n\t"
      "vmovaps 128(%1), %%ymm4\n\tvmovaps 160(%1), %%ymm5\n\tvmovaps 192(%1), %%ymm6\n\tvmovaps 224(%1), %%ymm7\n\t"
      "add $256, %1\n\tdec %0\n\tjnz 1b\n\t"
      : "+r"(steps), "+r"(from)::"xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "cc", "memory");
}
#else
void read_memory(const std::byte* from, std::int64_t bytes) {
  const volatile std::byte* at = from;
  for (std::int64_t i = 0; i < bytes; i += 64) static_cast<void>(at[i]);
}
#endif

// A loop of arithmetic and the operations that one of its steps does.
struct Loop {
  void (*run)(std::int64_t steps) = nullptr;
  double flops_a_step = 0.0;
};

Loop fma_loop() {
#if defined(__x86_64__)
  if (features().avx512) return {run_fma512, kChains * 16 * 2.0};
  if (features().avx2) return {run_fma256, kChains * 8 * 2.0};
#endif
  return {};
}

Loop bf16_loop() {
#if defined(__x86_64__)
  if (features().avx512bf16) return {run_bf16, kChains * 32 * 2.0};
#endif
  return {};
}

Rate rate_of(std::vector<double> samples) {
  if (samples.empty()) return {};
  std::sort(samples.begin(), samples.end());
  return {samples.back(), samples[samples.size() / 2]};
}

// Seconds from the first thread's start to the last one's end of work(thread, window), for each window.
template <class Work>
std::vector<double> time_windows(int num_threads, int windows, Work&& work) {
  std::vector<double> seconds(static_cast<std::size_t>(windows), 0.0);
  std::vector<Clock::time_point> begin(static_cast<std::size_t>(num_threads));
  std::vector<Clock::time_point> end(static_cast<std::size_t>(num_threads));
#pragma omp parallel num_threads(num_threads)
  {
    const auto thread = static_cast<std::size_t>(omp_get_thread_num());
    for (int window = 0; window < windows; ++window) {
#pragma omp barrier
      begin[thread] = Clock::now();
      work(omp_get_thread_num(), window);
      end[thread] = Clock::now();
#pragma omp barrier
#pragma omp single
      seconds[static_cast<std::size_t>(window)] =
          std::chrono::duration<double>(*std::max_element(end.begin(), end.end()) -
                                        *std::min_element(begin.begin(), begin.end()))
              .count();
    }
  }
  return seconds;
}

Rate measure_loop(const Loop& loop, int num_threads) {
  if (loop.run == nullptr) return {};
  std::vector<double> samples = time_windows(num_threads, kComputeWindows, [&](int, int) { loop.run(kComputeSteps); });
  for (double& sample : samples) {
    sample = loop.flops_a_step * static_cast<double>(kComputeSteps) * num_threads / sample * 1e-9;
  }
  return rate_of(std::move(samples));
}

struct Free {
  void operator()(std::byte* memory) const { std::free(memory); }
};
using Buffer = std::unique_ptr<std::byte, Free>;

Rate measure_reads(const std::vector<Buffer>& buffers, std::int64_t bytes, int num_threads) {
  const std::int64_t windows = bytes / kReadWindow;
  std::vector<double> samples =
      time_windows(num_threads, static_cast<int>(windows * kReadPasses), [&](int thread, int window) {
        read_memory(buffers[static_cast<std::size_t>(thread)].get() + window % windows * kReadWindow, kReadWindow);
      });
  for (double& sample : samples) sample = static_cast<double>(kReadWindow) * num_threads / sample * 1e-9;
  return rate_of(std::move(samples));
}

}  // namespace

Result<Ceilings> measure_ceilings(int num_threads) {
  Ceilings found{.num_threads = num_threads > 0 ? num_threads : omp_get_max_threads()};
  const std::int64_t bytes =
      std::clamp<std::int64_t>(1024 / found.num_threads, 64, 256) * kMegabyte / kReadWindow * kReadWindow;
  std::vector<Buffer> buffers;
  for (int i = 0; i < found.num_threads; ++i) {
    buffers.emplace_back(static_cast<std::byte*>(std::aligned_alloc(2 * kMegabyte, static_cast<std::size_t>(bytes))));
    if (buffers.back() == nullptr) {
      return resource_exhausted("measure_ceilings: want " + std::to_string(bytes) + " bytes a thread, got none");
    }
    // Advice only: without huge pages the rates are a little lower.
    madvise(buffers.back().get(), static_cast<std::size_t>(bytes), MADV_HUGEPAGE);
  }
#pragma omp parallel num_threads(found.num_threads)
  {
    std::byte* mine = buffers[static_cast<std::size_t>(omp_get_thread_num())].get();
    std::fill(mine, mine + bytes, std::byte{1});
  }
  found.fma_one = measure_loop(fma_loop(), 1);
  found.fma_all = measure_loop(fma_loop(), found.num_threads);
  found.bf16_one = measure_loop(bf16_loop(), 1);
  found.bf16_all = measure_loop(bf16_loop(), found.num_threads);
  found.read_one = measure_reads(buffers, bytes, 1);
  found.read_all = measure_reads(buffers, bytes, found.num_threads);
  return found;
}

}  // namespace quire::cpu
