// Tests of checked arithmetic, Status and Result, and dtype names.
#include <gtest/gtest.h>

#include <limits>
#include <memory>
#include <set>
#include <string>

#include "core/checked.h"
#include "quire/dtype.h"
#include "quire/status.h"

namespace quire {
namespace {

constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
constexpr std::int64_t kLeast = std::numeric_limits<std::int64_t>::min();

TEST(Checked, EmptyOnOverflow) {
  EXPECT_EQ(checked_mul(3, -4), -12);
  EXPECT_EQ(checked_mul(kMost, 1), kMost);
  EXPECT_EQ(checked_mul(kMost / 2 + 1, 2), std::nullopt);
  EXPECT_EQ(checked_mul(kLeast, -1), std::nullopt);
  EXPECT_EQ(checked_add(kMost - 1, 1), kMost);
  EXPECT_EQ(checked_add(kMost, 1), std::nullopt);
  EXPECT_EQ(checked_add(kLeast, -1), std::nullopt);
}

TEST(Checked, Products) {
  EXPECT_EQ(checked_product({}), 1);
  EXPECT_EQ(checked_product({2, 3, 7}), 42);
  EXPECT_EQ(checked_product({2, -3}), std::nullopt);
  EXPECT_EQ(checked_product({kMost, kMost, 0}), 0);
  EXPECT_EQ(checked_product({std::int64_t{1} << 32, std::int64_t{1} << 31}), std::nullopt);
  EXPECT_EQ(checked_product({std::int64_t{1} << 32, std::int64_t{1} << 30}), std::int64_t{1} << 62);
}

TEST(Checked, Rounding) {
  EXPECT_EQ(ceil_div(0, 4), 0);
  EXPECT_EQ(ceil_div(8, 4), 2);
  EXPECT_EQ(ceil_div(9, 4), 3);
  EXPECT_EQ(round_up(9, 4), 12);
}

TEST(Status, TextAndCodes) {
  EXPECT_TRUE(Status().ok());
  EXPECT_EQ(Status().to_string(), "ok");
  const Status status = out_of_range("index: want [0, 4), got 9");
  EXPECT_FALSE(status.ok());
  EXPECT_EQ(status.code(), StatusCode::kOutOfRange);
  EXPECT_EQ(status.to_string(), "out of range: index: want [0, 4), got 9");
  EXPECT_EQ(invalid_argument("x").code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(unsupported("x").code(), StatusCode::kUnsupported);
  EXPECT_EQ(not_found("x").code(), StatusCode::kNotFound);
  EXPECT_EQ(data_loss("x").code(), StatusCode::kDataLoss);
  EXPECT_EQ(resource_exhausted("x").code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(internal_error("x").code(), StatusCode::kInternal);
}

Result<std::unique_ptr<int>> make(bool good) {
  if (!good) return invalid_argument("good: want true, got false");
  return std::make_unique<int>(7);
}

Result<int> twice(bool good) {
  QUIRE_ASSIGN_OR_RETURN(const std::unique_ptr<int> value, make(good));
  QUIRE_RETURN_IF_ERROR(Status());
  return *value * 2;
}

TEST(Result, CarriesAValueOrAnError) {
  EXPECT_EQ(*twice(true), 14);
  EXPECT_EQ(twice(false).status().message(), "good: want true, got false");
  std::unique_ptr<int> moved = *make(true);
  EXPECT_EQ(*moved, 7);
}

TEST(DTypes, NamesRoundTrip) {
  std::set<std::string> names;
  for (int i = 0; i < kNumDTypes; ++i) {
    const auto dtype = static_cast<DType>(i);
    names.insert(std::string(dtype_name(dtype)));
    EXPECT_EQ(*parse_dtype(dtype_name(dtype)), dtype);
    EXPECT_EQ(dlpack_type(dtype).bits, 8 * dtype_bytes(dtype));
  }
  EXPECT_EQ(names.size(), static_cast<std::size_t>(kNumDTypes));
  EXPECT_EQ(*parse_dtype("bf16"), DType::kBFloat16);
  EXPECT_EQ(*parse_dtype("half"), DType::kFloat16);
  const Status wrong = parse_dtype("float64").status();
  EXPECT_NE(wrong.message().find("float8_e4m3fn"), std::string::npos);
  EXPECT_NE(wrong.message().find("'float64'"), std::string::npos);
}

TEST(DTypes, Kinds) {
  EXPECT_TRUE(is_activation(DType::kBFloat16));
  EXPECT_FALSE(is_activation(DType::kFloat8E4M3));
  EXPECT_TRUE(is_float8(DType::kFloat8E5M2));
  EXPECT_FALSE(is_float8(DType::kInt8));
  EXPECT_EQ(dlpack_type(DType::kBFloat16).code, 4);
  EXPECT_EQ(dlpack_type(DType::kInt64).code, 0);
}

}  // namespace
}  // namespace quire
