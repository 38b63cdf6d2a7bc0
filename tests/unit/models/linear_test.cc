// Linear layers: the product itself, orders of outputs, and rows that do not depend on their neighbours.
#include "models/linear.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "core/convert.h"

namespace quire {
namespace {

constexpr std::int64_t kIn = 40;
constexpr std::int64_t kOut = 28;
constexpr std::int64_t kRows = 21;

std::vector<float> some_values(std::int64_t count, std::int64_t seed) {
  std::vector<float> out;
  for (std::int64_t i = 0; i < count; ++i) out.push_back(static_cast<float>((i * 37 + seed * 11) % 64) / 32.0f - 1.0f);
  return out;  // exact in bfloat16
}

TensorView matrix(std::vector<float>& values, std::int64_t rows, std::int64_t columns) {
  return *make_tensor(values.data(), DType::kFloat32, {rows, columns});
}

RowBuffer input_rows(DType compute, std::int64_t rows) {
  RowBuffer out(rows, kIn, compute);
  const std::vector<float> values = some_values(rows * kIn, 3);
  for (std::size_t i = 0; i < values.size(); ++i) {
    store_from_float(out.rows().data, compute, static_cast<std::int64_t>(i), values[i]);
  }
  return out;
}

class LinearTest : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    if (GetParam() == DType::kBFloat16 && !has_bfloat16_linear()) GTEST_SKIP() << "no AVX-512 here";
  }
};

TEST_P(LinearTest, MultipliesStacksAndReorders) {
  std::vector<float> first = some_values(10 * kIn, 1);
  std::vector<float> second = some_values(18 * kIn, 2);
  std::vector<std::int64_t> order;
  for (std::int64_t i = 0; i < kOut; ++i) order.push_back((i * 5 + 3) % kOut);
  LinearWeights weights{.parts = {matrix(first, 10, kIn), matrix(second, 18, kIn)}, .bias = some_values(kOut, 9)};
  const std::vector<float> bias = weights.bias;
  weights.outputs = order;
  const Result<Linear> linear = Linear::create(weights, GetParam(), RowTiling::kByCount);
  ASSERT_TRUE(linear.ok()) << linear.status().to_string();
  const RowBuffer x = input_rows(GetParam(), kRows);
  const RowBuffer y(kRows, kOut, DType::kFloat32);
  ASSERT_TRUE(linear->run(x.rows(), kRows, y.rows()).ok());
  const std::vector<float> values = some_values(kRows * kIn, 3);
  for (std::int64_t row = 0; row < kRows; ++row) {
    for (std::int64_t o = 0; o < kOut; ++o) {
      const std::int64_t from = order[static_cast<std::size_t>(o)];
      const float* w = from < 10 ? &first[static_cast<std::size_t>(from * kIn)]
                                 : &second[static_cast<std::size_t>((from - 10) * kIn)];
      double sum = bias[static_cast<std::size_t>(from)];
      for (std::int64_t i = 0; i < kIn; ++i) sum += double{w[i]} * values[static_cast<std::size_t>(row * kIn + i)];
      EXPECT_NEAR(y.rows().row<float>(row)[o], sum, 1e-4) << "row " << row << ", output " << o;
    }
  }
}

TEST_P(LinearTest, TransposedWeightsGiveTheSame) {
  std::vector<float> values = some_values(kOut * kIn, 1);
  std::vector<float> transposed(values.size());
  for (std::int64_t o = 0; o < kOut; ++o) {
    for (std::int64_t i = 0; i < kIn; ++i) {
      transposed[static_cast<std::size_t>(i * kOut + o)] = values[static_cast<std::size_t>(o * kIn + i)];
    }
  }
  const Result<Linear> a = Linear::create({.parts = {matrix(values, kOut, kIn)}}, GetParam(), RowTiling::kFixed);
  const Result<Linear> b = Linear::create({.parts = {matrix(transposed, kIn, kOut)}, .order = WeightOrder::kInOut},
                                          GetParam(), RowTiling::kFixed);
  ASSERT_TRUE(a.ok() && b.ok());
  const RowBuffer x = input_rows(GetParam(), kRows);
  const RowBuffer y(kRows, kOut, DType::kFloat32);
  const RowBuffer z(kRows, kOut, DType::kFloat32);
  ASSERT_TRUE(a->run(x.rows(), kRows, y.rows()).ok());
  ASSERT_TRUE(b->run(x.rows(), kRows, z.rows()).ok());
  for (std::int64_t i = 0; i < kRows * kOut; ++i) EXPECT_EQ(y.floats()[i], z.floats()[i]);
}

TEST_P(LinearTest, FixedTilesMakeRowsIndependent) {
  std::vector<float> values = some_values(kOut * kIn, 1);
  for (float& value : values) value = std::sin(value * 9.0f);
  const Result<Linear> linear = Linear::create({.parts = {matrix(values, kOut, kIn)}}, GetParam(), RowTiling::kFixed);
  ASSERT_TRUE(linear.ok());
  const RowBuffer x = input_rows(GetParam(), kRows);
  const RowBuffer all(kRows, kOut, DType::kFloat32);
  ASSERT_TRUE(linear->run(x.rows(), kRows, all.rows()).ok());
  for (std::int64_t row = 0; row < kRows; ++row) {
    const RowBuffer one(1, kOut, DType::kFloat32);
    const RowBuffer alone(1, kIn, GetParam());
    const auto bytes = static_cast<std::size_t>(kIn * dtype_bytes(GetParam()));
    std::copy_n(static_cast<const std::byte*>(x.rows().from(row).data), bytes,
                static_cast<std::byte*>(alone.rows().data));
    ASSERT_TRUE(linear->run(alone.rows(), 1, one.rows()).ok());
    for (std::int64_t o = 0; o < kOut; ++o) EXPECT_EQ(one.floats()[o], all.rows().row<float>(row)[o]);
  }
}

INSTANTIATE_TEST_SUITE_P(Types, LinearTest, testing::Values(DType::kFloat32, DType::kBFloat16));

TEST(LinearErrors, ShapesThatDoNotFit) {
  std::vector<float> values = some_values(kOut * kIn, 1);
  const TensorView good = matrix(values, kOut, kIn);
  const auto fails = [](const LinearWeights& weights, DType compute) {
    return !Linear::create(weights, compute, RowTiling::kByCount).ok();
  };
  EXPECT_TRUE(fails({.parts = {good, matrix(values, kIn, kOut)}}, DType::kFloat32));
  EXPECT_TRUE(fails({.parts = {good}, .bias = {1.0f}}, DType::kFloat32));
  EXPECT_TRUE(fails({.parts = {good}}, DType::kFloat16));
  EXPECT_TRUE(fails({}, DType::kFloat32));
}

}  // namespace
}  // namespace quire
