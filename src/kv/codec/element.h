// Elements: how one number is stored. Each converts exactly to float and rounds to nearest even from it.
#pragma once

#include <cstdint>

#include "core/convert.h"
#include "core/macros.h"
#include "quire/dtype.h"

namespace quire {

struct Float32Element {
  using Code = float;
  static constexpr DType kDType = DType::kFloat32;
  QUIRE_HD static float decode(Code code) { return code; }
  QUIRE_HD static Code encode(float value) { return value; }
};

struct Float16Element {
  using Code = std::uint16_t;
  static constexpr DType kDType = DType::kFloat16;
  QUIRE_HD static float decode(Code code) { return f16_to_float(code); }
  QUIRE_HD static Code encode(float value) { return float_to_f16(value); }
};

struct BFloat16Element {
  using Code = std::uint16_t;
  static constexpr DType kDType = DType::kBFloat16;
  QUIRE_HD static float decode(Code code) { return bf16_to_float(code); }
  QUIRE_HD static Code encode(float value) { return float_to_bf16(value); }
};

// The 8-bit elements saturate; kMax is the magnitude that a row's largest value is scaled to.
struct E4M3Element {
  using Code = std::uint8_t;
  static constexpr DType kDType = DType::kFloat8E4M3;
  static constexpr float kMax = 448.0f;
  QUIRE_HD static float decode(Code code) { return e4m3_to_float(code); }
  QUIRE_HD static Code encode(float value) { return float_to_e4m3(value); }
};

struct E5M2Element {
  using Code = std::uint8_t;
  static constexpr DType kDType = DType::kFloat8E5M2;
  static constexpr float kMax = 57344.0f;
  QUIRE_HD static float decode(Code code) { return e5m2_to_float(code); }
  QUIRE_HD static Code encode(float value) { return float_to_e5m2(value); }
};

struct Int8Element {
  using Code = std::int8_t;
  static constexpr DType kDType = DType::kInt8;
  static constexpr float kMax = 127.0f;
  QUIRE_HD static float decode(Code code) { return static_cast<float>(code); }
  QUIRE_HD static Code encode(float value) { return float_to_i8(value); }
};

}  // namespace quire
