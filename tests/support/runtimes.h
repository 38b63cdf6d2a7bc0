// The CPU runtimes that tests run: one for each ISA of this machine.
#pragma once

#include <vector>

#include "quire/runtime.h"

namespace quire::testing {

inline Runtime cpu_runtime(Isa isa, int num_threads = 1) {
  return {.backplane = Backplane::kCpu, .isa = isa, .num_threads = num_threads};
}

inline std::vector<Runtime> cpu_runtimes(int num_threads = 1) {
  std::vector<Runtime> runtimes;
  for (Isa isa : available_isas()) runtimes.push_back(cpu_runtime(isa, num_threads));
  return runtimes;
}

// Sanitizers make kernels 10 to 50 times slower; they get a share of the cases.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif
#else
inline constexpr bool kSanitized = false;
#endif

}  // namespace quire::testing
