// Exact conversions between float and the narrow formats (f16, bf16, e4m3, e5m2, i8), for host and device.
// Widening is exact for every code. Narrowing rounds to nearest even; f16 and bf16 overflow to infinity as IEEE does,
// the 8-bit formats saturate (e4m3 to +-448, e5m2 to +-57344, also from infinity), NaN stays NaN.
#pragma once

#include <cstdint>

#include "core/macros.h"
#include "quire/dtype.h"

namespace quire {

QUIRE_HD inline std::uint32_t float_bits(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  return __builtin_bit_cast(std::uint32_t, value);
#endif
}

QUIRE_HD inline float bits_float(std::uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  return __builtin_bit_cast(float, bits);
#endif
}

// A small IEEE-like format: kExponent exponent bits, kMantissa mantissa bits, the given bias.
// kFinite formats (e4m3fn) use the top exponent for numbers and keep only the all-ones code for NaN.
template <int kExponent, int kMantissa, bool kFinite>
struct SmallFloat {
  static constexpr int kBias = (1 << (kExponent - 1)) - 1;
  static constexpr std::uint32_t kSignBit = 1u << (kExponent + kMantissa);
  static constexpr std::uint32_t kTopExponent = (1u << kExponent) - 1;
  static constexpr std::uint32_t kMantissaMask = (1u << kMantissa) - 1;
  static constexpr std::uint32_t kMaxFinite =
      kFinite ? (kTopExponent << kMantissa) + kMantissaMask - 1 : (kTopExponent << kMantissa) - 1;
  static constexpr std::uint32_t kInfinity = kTopExponent << kMantissa;  // only without kFinite
  static constexpr std::uint32_t kNan = (kTopExponent << kMantissa) | (kFinite ? kMantissaMask : 1u << (kMantissa - 1));

  // Both directions compute every case and select, so that loops over them become vector code.
  QUIRE_HD static float widen(std::uint32_t code) {
    const std::int32_t rest = static_cast<std::int32_t>(code & (kSignBit - 1));
    const std::uint32_t sign = (code & kSignBit) << (31 - kExponent - kMantissa);
    const std::uint32_t shifted = static_cast<std::uint32_t>(rest) << (23 - kMantissa);
    // Zero and subnormals are rest * 2^(1 - bias - kMantissa), exact in float.
    const float small =
        static_cast<float>(rest) * bits_float(static_cast<std::uint32_t>(128 - kBias - kMantissa) << 23);
    std::uint32_t magnitude = shifted + (static_cast<std::uint32_t>(127 - kBias) << 23);
    magnitude = rest <= static_cast<std::int32_t>(kMantissaMask) ? float_bits(small) : magnitude;
    if constexpr (kFinite) {
      magnitude = rest == static_cast<std::int32_t>(kNan) ? 0x7fc00000u : magnitude;
    } else {
      magnitude = rest >= static_cast<std::int32_t>(kInfinity) ? shifted | 0x7f800000u : magnitude;
    }
    return bits_float(sign | magnitude);
  }

  // kSaturate: values beyond the largest finite one, and infinities, become it.
  template <bool kSaturate>
  QUIRE_HD static std::uint32_t narrow(float value) {
    constexpr int kShift = 23 - kMantissa;
    constexpr std::int32_t kSmallestNormal = (128 - kBias) << 23;
    // Where this number's last bit has the value of the format's last subnormal bit: adding it rounds as wanted.
    constexpr std::int32_t kRounder = (127 + kShift + 1 - kBias) << 23;
    const std::uint32_t bits = float_bits(value);
    const std::uint32_t sign = (bits >> (31 - kExponent - kMantissa)) & kSignBit;
    const std::int32_t magnitude = static_cast<std::int32_t>(bits & 0x7fffffffu);
    const std::int32_t rebased = magnitude - ((127 - kBias) << 23);
    const std::int32_t normal = (rebased + ((1 << (kShift - 1)) - 1) + ((rebased >> kShift) & 1)) >> kShift;
    const float rounded = bits_float(static_cast<std::uint32_t>(magnitude)) + bits_float(kRounder);
    const std::int32_t small = static_cast<std::int32_t>(float_bits(rounded)) - kRounder;
    constexpr std::int32_t kMost = static_cast<std::int32_t>(kMaxFinite);
    constexpr std::int32_t kBeyond = static_cast<std::int32_t>(kSaturate ? kMaxFinite : kInfinity);
    std::int32_t code = magnitude < kSmallestNormal ? small : normal;
    code = code > kMost ? kBeyond : code;
    code = magnitude > 0x7f800000 ? static_cast<std::int32_t>(kNan) : code;
    return sign | static_cast<std::uint32_t>(code);
  }
};

using Float16Format = SmallFloat<5, 10, false>;
using Float8E4M3Format = SmallFloat<4, 3, true>;
using Float8E5M2Format = SmallFloat<5, 2, false>;

QUIRE_HD inline float f16_to_float(std::uint16_t code) { return Float16Format::widen(code); }
QUIRE_HD inline std::uint16_t float_to_f16(float value) {
  return static_cast<std::uint16_t>(Float16Format::narrow<false>(value));
}
QUIRE_HD inline float bf16_to_float(std::uint16_t code) { return bits_float(static_cast<std::uint32_t>(code) << 16); }
QUIRE_HD inline std::uint16_t float_to_bf16(float value) {
  const std::uint32_t bits = float_bits(value);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool is_nan = static_cast<std::int32_t>(bits & 0x7fffffffu) > 0x7f800000;
  return static_cast<std::uint16_t>(is_nan ? (bits >> 16) | 0x40u : rounded);
}
QUIRE_HD inline float e4m3_to_float(std::uint8_t code) { return Float8E4M3Format::widen(code); }
QUIRE_HD inline std::uint8_t float_to_e4m3(float value) {
  return static_cast<std::uint8_t>(Float8E4M3Format::narrow<true>(value));
}
QUIRE_HD inline float e5m2_to_float(std::uint8_t code) { return Float8E5M2Format::widen(code); }
QUIRE_HD inline std::uint8_t float_to_e5m2(float value) {
  return static_cast<std::uint8_t>(Float8E5M2Format::narrow<true>(value));
}

// Rounds to nearest even and clamps to [-128, 127]; NaN becomes 0.
QUIRE_HD inline std::int8_t float_to_i8(float value) {
  float clamped = value == value ? value : 0.0f;
  clamped = clamped < -128.0f ? -128.0f : clamped;
  clamped = clamped > 127.0f ? 127.0f : clamped;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the current (nearest even) mode
  const std::uint32_t bits = float_bits(clamped + magic);
  return static_cast<std::int8_t>(static_cast<std::int32_t>(bits - float_bits(magic)));
}

// The element at `index` of an array of `dtype` as a float. Integers above 8 bits are no values of attention.
QUIRE_HD inline float load_as_float(const void* data, DType dtype, std::int64_t index) {
  switch (dtype) {
    case DType::kFloat32:
      return static_cast<const float*>(data)[index];
    case DType::kFloat16:
      return f16_to_float(static_cast<const std::uint16_t*>(data)[index]);
    case DType::kBFloat16:
      return bf16_to_float(static_cast<const std::uint16_t*>(data)[index]);
    case DType::kFloat8E4M3:
      return e4m3_to_float(static_cast<const std::uint8_t*>(data)[index]);
    case DType::kFloat8E5M2:
      return e5m2_to_float(static_cast<const std::uint8_t*>(data)[index]);
    case DType::kInt8:
      return static_cast<float>(static_cast<const std::int8_t*>(data)[index]);
    case DType::kUInt8:
      return static_cast<float>(static_cast<const std::uint8_t*>(data)[index]);
    case DType::kInt32:
    case DType::kInt64:
      break;
  }
  return 0.0f;
}

// Rounds `value` to `dtype` and stores it at `index`.
QUIRE_HD inline void store_from_float(void* data, DType dtype, std::int64_t index, float value) {
  switch (dtype) {
    case DType::kFloat32:
      static_cast<float*>(data)[index] = value;
      return;
    case DType::kFloat16:
      static_cast<std::uint16_t*>(data)[index] = float_to_f16(value);
      return;
    case DType::kBFloat16:
      static_cast<std::uint16_t*>(data)[index] = float_to_bf16(value);
      return;
    case DType::kFloat8E4M3:
      static_cast<std::uint8_t*>(data)[index] = float_to_e4m3(value);
      return;
    case DType::kFloat8E5M2:
      static_cast<std::uint8_t*>(data)[index] = float_to_e5m2(value);
      return;
    case DType::kInt8:
      static_cast<std::int8_t*>(data)[index] = float_to_i8(value);
      return;
    case DType::kUInt8:
    case DType::kInt32:
    case DType::kInt64:
      return;
  }
}

}  // namespace quire
