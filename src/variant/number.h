// Numbers: what a term may do with a logit. Scalar<T> serves the float64 reference and CUDA; each SIMD vocabulary in
// src/cpu/simd offers the same names for a vector of lanes, one lane a key.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "core/macros.h"

namespace quire {

// A number policy N has: F (logits), I (int32 kv positions), M (masks), all with the usual operators lane by lane
// (F: + - * unary -, F / F; I: + - and comparisons with int32 that give M; M: & | !), and the functions below.
template <class T>
struct Scalar {
  using F = T;
  using I = std::int32_t;
  using M = bool;

  QUIRE_HD static F constant(double value) { return static_cast<T>(value); }
  QUIRE_HD static F to_float(I value) { return static_cast<T>(value); }
  QUIRE_HD static F select(M mask, F yes, F no) { return mask ? yes : no; }
  QUIRE_HD static F tanh(F x) {
#if defined(__CUDA_ARCH__)
    return ::tanhf(x);
#else
    return std::tanh(x);
#endif
  }
  QUIRE_HD static F sqrt(F x) {
#if defined(__CUDA_ARCH__)
    return ::sqrtf(x);
#else
    return std::sqrt(x);
#endif
  }
  // min(index, count - 1): keeps a lookup inside its array where a mask decides anyway.
  QUIRE_HD static I clamp_below(I index, std::int32_t count) { return index < count ? index : count - 1; }
  // Bit `index` of the words, true where index < 0; the caller guarantees index < 64 * number of words.
  QUIRE_HD static M test_bit(const std::uint64_t* words, I index) {
    return index < 0 || ((words[static_cast<std::uint32_t>(index) >> 6] >> (index & 63)) & 1u) != 0;
  }
  // values[index] where 0 <= index < count, else 0.
  QUIRE_HD static F lookup(const float* values, I index, std::int32_t count) {
    return index >= 0 && index < count ? static_cast<T>(values[index]) : static_cast<T>(0);
  }
};

}  // namespace quire
