// DType: the element types of tensors and caches, their sizes, names and DLPack codes.
#pragma once

#include <cstdint>
#include <string_view>

#include "quire/status.h"

namespace quire {

enum class DType : std::uint8_t {
  kFloat32,
  kFloat16,
  kBFloat16,
  kFloat8E4M3,  // e4m3fn: no infinity, +-448, one NaN a sign
  kFloat8E5M2,  // IEEE-like: infinities and NaNs, +-57344
  kInt8,
  kUInt8,
  kInt32,
  kInt64,
};

inline constexpr int kNumDTypes = 9;

constexpr std::int64_t dtype_bytes(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
    case DType::kInt32:
      return 4;
    case DType::kFloat16:
    case DType::kBFloat16:
      return 2;
    case DType::kInt64:
      return 8;
    case DType::kFloat8E4M3:
    case DType::kFloat8E5M2:
    case DType::kInt8:
    case DType::kUInt8:
      return 1;
  }
  return 0;
}

constexpr bool is_float8(DType dtype) { return dtype == DType::kFloat8E4M3 || dtype == DType::kFloat8E5M2; }

// Types that queries, keys, values and outputs may have: float32, float16, bfloat16.
constexpr bool is_activation(DType dtype) {
  return dtype == DType::kFloat32 || dtype == DType::kFloat16 || dtype == DType::kBFloat16;
}

// "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int8", "uint8", "int32", "int64".
std::string_view dtype_name(DType dtype);

// Accepts dtype_name's words, the short forms "f32 f16 bf16 f8_e4m3 f8_e5m2 i8 u8 i32 i64" and "fp32 fp16 half float";
// an unknown name is an error that lists the valid ones.
Result<DType> parse_dtype(std::string_view name);

// DLPack's DLDataType {code, bits, lanes = 1} of a dtype.
struct DLPackType {
  std::uint8_t code;
  std::uint8_t bits;
};
DLPackType dlpack_type(DType dtype);

}  // namespace quire
