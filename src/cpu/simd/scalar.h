// The vocabulary without vector instructions: one lane.
#pragma once

#include <cstdint>

#include "core/convert.h"
#include "core/macros.h"

namespace quire::cpu {
namespace {

struct Simd {
  static constexpr int kLanes = 1;
  static constexpr int kRowBlock = 3;     // rows of the matrix product's register tile
  static constexpr int kVectorBlock = 4;  // and its vectors
  static constexpr bool kHasBf16 = false;
  static constexpr int kTransposedLoads = 0;  // no transposing loads
  using F = float;
  using I = std::int32_t;
  using M = bool;

  QUIRE_INLINE static F constant(double value) { return static_cast<float>(value); }
  QUIRE_INLINE static F load(const float* from) { return *from; }
  QUIRE_INLINE static void store(float* to, F value) { *to = value; }
  QUIRE_INLINE static F broadcast(const float* from) { return *from; }
  // The product is rounded: x86-64 without extensions has no fused form.
  QUIRE_INLINE static F fma(F a, F b, F c) { return a * b + c; }
  // The second operand where one is NaN.
  QUIRE_INLINE static F max(F a, F b) { return a > b ? a : b; }
  QUIRE_INLINE static F sqrt(F x) { return __builtin_sqrtf(x); }
  QUIRE_INLINE static F select(M mask, F yes, F no) { return mask ? yes : no; }
  QUIRE_INLINE static float reduce_max(F x) { return x; }
  QUIRE_INLINE static float reduce_add(F x) { return x; }
  QUIRE_INLINE static M less(F a, F b) { return a < b; }

  QUIRE_INLINE static I iota(std::int32_t first) { return first; }
  QUIRE_INLINE static F to_float(I value) { return static_cast<float>(value); }
  QUIRE_INLINE static I as_int(F x) { return static_cast<I>(float_bits(x)); }
  QUIRE_INLINE static F as_float(I x) { return bits_float(static_cast<std::uint32_t>(x)); }
  QUIRE_INLINE static I bit_and(I a, std::int32_t b) { return a & b; }
  QUIRE_INLINE static I bit_or(I a, I b) { return a | b; }
  template <int kBits>
  QUIRE_INLINE static I shift_right(I x) {
    return static_cast<I>(static_cast<std::uint32_t>(x) >> kBits);
  }
  QUIRE_INLINE static I clamp_below(I index, std::int32_t count) { return index < count ? index : count - 1; }
  QUIRE_INLINE static M test_bit(const std::uint64_t* words, I index) {
    return index < 0 || ((words[static_cast<std::uint32_t>(index) >> 6] >> (index & 63)) & 1u) != 0;
  }
  QUIRE_INLINE static F lookup(const float* values, I index, std::int32_t count) {
    return index >= 0 && index < count ? values[index] : 0.0f;
  }
  QUIRE_INLINE static M mask_of(std::uint64_t bits) { return (bits & 1u) != 0; }
  QUIRE_INLINE static std::uint64_t bits_of(M mask) { return mask ? 1u : 0u; }

  // To the nearest integer, for |x| < 2^22.
  QUIRE_INLINE static F round(F x) { return (x + 12582912.0f) - 12582912.0f; }
  // x * 2^n for an integer n <= 127; 0 below 2^-126. NaN stays.
  QUIRE_INLINE static F scale_by_power(F x, F n) {
    if (n < -126.0f) return 0.0f;
    return x * bits_float((static_cast<std::uint32_t>(n == n ? static_cast<std::int32_t>(n) : 0) + 127u) << 23);
  }
  QUIRE_INLINE static void transpose(F*) {}

  // kLanes elements of a row from index `first`, of which `count` exist; the rest is 0.
  template <DType kStorage>
  QUIRE_INLINE static F load_as_floats(const void* row, std::int64_t first, std::int64_t) {
    return load_as_float(row, kStorage, first);
  }
  QUIRE_INLINE static void prefetch(const void*) {}
};

}  // namespace
}  // namespace quire::cpu
