// Reads cpuid, and xgetbv for whether the operating system saves the wide registers.
#include "cpu/features.h"

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace quire::cpu {
namespace {

#if defined(__x86_64__)
constexpr bool has_bit(std::uint32_t word, int bit) { return ((word >> bit) & 1u) != 0; }

// The register sets (extended control register 0) that the operating system saves on a context switch.
std::uint64_t saved_registers() {
  std::uint32_t low = 0;
  std::uint32_t high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<std::uint64_t>(high) << 32) | low;
}

Features detect() {
  constexpr std::uint64_t kAvxState = 0x6;      // xmm and ymm
  constexpr std::uint64_t kAvx512State = 0xe6;  // and the mask registers and both halves of zmm
  std::uint32_t a = 0;
  std::uint32_t b = 0;
  std::uint32_t c = 0;
  std::uint32_t d = 0;
  Features found;
  if (__get_cpuid_count(1, 0, &a, &b, &c, &d) == 0) return found;
  const bool osxsave = has_bit(c, 27);
  const bool avx_parts = has_bit(c, 28) && has_bit(c, 12) && has_bit(c, 29);  // AVX, FMA, F16C
  if (!osxsave || !avx_parts) return found;
  const std::uint64_t saved = saved_registers();
  if ((saved & kAvxState) != kAvxState || __get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return found;
  found.avx2 = has_bit(b, 5);
  const bool avx512_parts = has_bit(b, 16) && has_bit(b, 17) && has_bit(b, 30) && has_bit(b, 31) && has_bit(c, 1);
  found.avx512 = found.avx2 && avx512_parts && (saved & kAvx512State) == kAvx512State;
  const std::uint32_t subleaves = a;
  if (!found.avx512 || subleaves < 1 || __get_cpuid_count(7, 1, &a, &b, &c, &d) == 0) return found;
  found.avx512bf16 = has_bit(a, 5);
  return found;
}
#else
Features detect() { return {}; }
#endif

}  // namespace

const Features& features() {
  static const Features kFound = detect();
  return kFound;
}

}  // namespace quire::cpu
