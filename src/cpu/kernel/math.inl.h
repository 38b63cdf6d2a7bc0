// Number: the ISA's vocabulary with the elementary functions that terms and the softmax need, written once.
#pragma once

#include "core/macros.h"

namespace quire::cpu {
namespace {

struct Number : Simd {
  using Simd::F;
  using Simd::I;
  using Simd::M;

  // 2^x for x <= 127, to about one unit in the last place; 1 for 0, 0 below 2^-126 (AVX-512: gradually), NaN for NaN.
  // 2^x = 2^n * 2^f with f in [-1/2, 1/2], and 2^f - 1 is f times a polynomial of degree 5 fitted to 5e-9.
  QUIRE_INLINE static F exp2(F x) {
    const F bounded = Simd::max(constant(-200.0), x);
    const F n = Simd::round(bounded);
    const F f = bounded - n;
    F p = Simd::fma(constant(0x1.4413896cfe38dp-13), f, constant(0x1.5f089016285eap-10));
    p = Simd::fma(p, f, constant(0x1.3b2a530452b26p-7));
    p = Simd::fma(p, f, constant(0x1.c6af6cdbbdcfap-5));
    p = Simd::fma(p, f, constant(0x1.ebfbe00e63b9ep-3));
    p = Simd::fma(p, f, constant(0x1.62e4302fc626dp-1));
    return Simd::scale_by_power(Simd::fma(p, f, constant(1.0)), n);
  }

  // For any x, to a few units in the last place: an odd polynomial near 0, else (1 - e) / (1 + e), e = exp(-2 |x|),
  // which cannot overflow.
  QUIRE_INLINE static F tanh(F x) {
    const I sign = Simd::bit_and(Simd::as_int(x), static_cast<std::int32_t>(0x80000000u));
    const F magnitude = Simd::as_float(Simd::bit_and(Simd::as_int(x), 0x7fffffff));
    const F e = exp2(magnitude * constant(-2.0 * kLog2E));
    const F far = (constant(1.0) - e) / (constant(1.0) + e);
    const F y = x * x;
    F p = Simd::fma(constant(0.00221213402), y, constant(-0.00824552475));
    p = Simd::fma(p, y, constant(0.0217250558));
    p = Simd::fma(p, y, constant(-0.0539505359));
    p = Simd::fma(p, y, constant(0.133332286));
    p = Simd::fma(p, y, constant(-0.33333331));
    const F near = Simd::fma(p * y, magnitude, magnitude);
    const F either = Simd::select(Simd::less(magnitude, constant(0.6)), near, far);
    return Simd::as_float(Simd::bit_or(Simd::as_int(either), sign));
  }

  // Natural logarithm of a normal positive x: x = 2^e * m with m in about [0.71, 1.42], and
  // log m = 2 s (1 + s^2/3 + s^4/5 + ...) with s = (m - 1) / (m + 1).
  QUIRE_INLINE static F log(F x) {
    constexpr std::int32_t kSqrtHalf = 0x3f3504f3;
    const I shifted = Simd::as_int(x) - (kSqrtHalf - 0x3f000000);  // no overflow, for a NaN either
    const F e = Simd::to_float(Simd::template shift_right<23>(shifted) - 126);
    const F m = Simd::as_float(Simd::bit_and(shifted, 0x007fffff) + kSqrtHalf);
    const F s = (m - constant(1.0)) / (m + constant(1.0));
    const F y = s * s;
    F p = Simd::fma(constant(1.0 / 9), y, constant(1.0 / 7));
    p = Simd::fma(p, y, constant(1.0 / 5));
    p = Simd::fma(p, y, constant(1.0 / 3));
    const F twice = s + s;
    return Simd::fma(e, constant(kLn2), Simd::fma(p * y, twice, twice));
  }

  static constexpr double kLog2E = 1.4426950408889634;
  static constexpr double kLn2 = 0.6931471805599453;
};

}  // namespace
}  // namespace quire::cpu
