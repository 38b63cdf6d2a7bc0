// DType: names, parsing and DLPack codes.
#include "quire/dtype.h"

#include <array>
#include <string>
#include <utility>

namespace quire {
namespace {

struct DTypeInfo {
  DType dtype;
  std::string_view name;
  std::string_view short_name;
  DLPackType dlpack;
};

// DLPack codes: 0 int, 1 uint, 2 float, 4 bfloat, 10 float8_e4m3fn, 12 float8_e5m2.
constexpr std::array<DTypeInfo, kNumDTypes> kDTypes{{
    {DType::kFloat32, "float32", "f32", {2, 32}},
    {DType::kFloat16, "float16", "f16", {2, 16}},
    {DType::kBFloat16, "bfloat16", "bf16", {4, 16}},
    {DType::kFloat8E4M3, "float8_e4m3fn", "f8_e4m3", {10, 8}},
    {DType::kFloat8E5M2, "float8_e5m2", "f8_e5m2", {12, 8}},
    {DType::kInt8, "int8", "i8", {0, 8}},
    {DType::kUInt8, "uint8", "u8", {1, 8}},
    {DType::kInt32, "int32", "i32", {0, 32}},
    {DType::kInt64, "int64", "i64", {0, 64}},
}};

constexpr std::array<std::pair<std::string_view, DType>, 8> kAliases{{
    {"fp32", DType::kFloat32},
    {"float", DType::kFloat32},
    {"fp16", DType::kFloat16},
    {"half", DType::kFloat16},
    {"fp8_e4m3", DType::kFloat8E4M3},
    {"float8_e4m3", DType::kFloat8E4M3},
    {"fp8_e5m2", DType::kFloat8E5M2},
    {"fp8", DType::kFloat8E4M3},
}};

const DTypeInfo& info(DType dtype) { return kDTypes[static_cast<std::size_t>(dtype)]; }

}  // namespace

std::string_view dtype_name(DType dtype) { return info(dtype).name; }

DLPackType dlpack_type(DType dtype) { return info(dtype).dlpack; }

Result<DType> parse_dtype(std::string_view name) {
  std::string known;
  for (const DTypeInfo& entry : kDTypes) {
    if (name == entry.name || name == entry.short_name) return entry.dtype;
    known += known.empty() ? "" : ", ";
    known += entry.name;
  }
  for (const auto& [alias, dtype] : kAliases) {
    if (name == alias) return dtype;
  }
  return invalid_argument("dtype: want one of " + known + ", got '" + std::string(name) + "'");
}

}  // namespace quire
