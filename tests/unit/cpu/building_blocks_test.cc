// The pieces under the CPU attention kernels, on every ISA: elementary functions, packing of every code, matrix
// products.
#include <cmath>
#include <limits>

#include "cpu/kernel_table.h"
#include "unit/cpu/problem.h"

namespace quire::cpu::test {
namespace {

class BuildingBlocks : public EachIsa {
 protected:
  const KernelTable& kernels() const { return *kernel_table(GetParam()); }
};

using Map = void (*)(const float*, float*, std::int32_t);

// The largest relative error of `map` over `inputs` against `exact`.
double worst_error(Map map, std::vector<float> inputs, double (*exact)(double)) {
  inputs.resize((inputs.size() + 15) / 16 * 16, inputs.front());
  std::vector<float> got(inputs.size());
  map(inputs.data(), got.data(), static_cast<std::int32_t>(inputs.size()));
  double worst = 0.0;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const double want = exact(inputs[i]);
    const double error = std::abs(got[i] - want) / std::max(std::abs(want), 1e-37);
    worst = std::max(worst, error);
  }
  return worst;
}

std::vector<float> spread(double low, double high, int count) {
  std::vector<float> values;
  for (int i = 0; i <= count; ++i) values.push_back(static_cast<float>(low + (high - low) * i / count));
  return values;
}

float one(Map map, float x) {
  std::vector<float> in(16, x);
  std::vector<float> out(16);
  map(in.data(), out.data(), 16);
  return out[7];
}

TEST_P(BuildingBlocks, Exp2) {
  EXPECT_LT(worst_error(kernels().exp2, spread(-125.9, 0.0, 1 << 20), std::exp2), 2.5e-7);
  EXPECT_LT(worst_error(kernels().exp2, spread(0.0, 126.0, 1 << 18), std::exp2), 2.5e-7);
  EXPECT_EQ(one(kernels().exp2, 0.0f), 1.0f);
  EXPECT_EQ(one(kernels().exp2, -INFINITY), 0.0f);
  EXPECT_EQ(one(kernels().exp2, -1e30f), 0.0f);
  EXPECT_TRUE(std::isnan(one(kernels().exp2, NAN)));
}

TEST_P(BuildingBlocks, Tanh) {
  EXPECT_LT(worst_error(kernels().tanh, spread(-20.0, 20.0, 1 << 20), std::tanh), 6e-7);
  EXPECT_LT(worst_error(kernels().tanh, spread(-1e-3, 1e-3, 1 << 16), std::tanh), 3e-7);
  for (float x : {1e9f, 3e38f, INFINITY}) {
    EXPECT_EQ(one(kernels().tanh, x), 1.0f);
    EXPECT_EQ(one(kernels().tanh, -x), -1.0f);
  }
  EXPECT_TRUE(std::isnan(one(kernels().tanh, NAN)));
}

TEST_P(BuildingBlocks, Log) {
  std::vector<float> inputs;
  for (double exponent = -37.0; exponent < 38.0; exponent += 0.0007) {
    const float x = static_cast<float>(std::pow(10.0, exponent));
    if (std::abs(x - 1.0f) > 0.1f) inputs.push_back(x);
  }
  EXPECT_LT(worst_error(kernels().log, inputs, std::log), 4e-7);
  EXPECT_LT(worst_error(kernels().log, spread(1.0001, 1.1, 1 << 16), std::log), 4e-7);
  EXPECT_EQ(one(kernels().log, 1.0f), 0.0f);
}

// Element (key, d) of packed keys, or element (key, column) of packed values.
float packed_element(const std::vector<float>& packed, Compute compute, std::int64_t line, std::int64_t lane,
                     std::int64_t stride) {
  if (compute == Compute::kFloat32) return packed[static_cast<std::size_t>(line * stride + lane)];
  const std::uint32_t pair = float_bits(packed[static_cast<std::size_t>(line / 2 * stride + lane)]);
  return bf16_to_float(static_cast<std::uint16_t>(line % 2 == 0 ? pair & 0xffffu : pair >> 16));
}

void expect_same(float got, float want) {
  if (std::isnan(want)) {
    EXPECT_TRUE(std::isnan(got));
  } else {
    EXPECT_EQ(float_bits(got), float_bits(want));
  }
}

// Rows of `size` elements that run through all codes of an 8-bit type, or a sample of those of a wider one.
void check_pack(const KernelTable& kernels, Compute compute, DType storage, std::int32_t size) {
  const std::int64_t bytes = dtype_bytes(storage);
  std::vector<std::byte> data(static_cast<std::size_t>(kTileKeys * size * bytes + 1));
  std::byte* rows_start = data.data() + (bytes == 1 ? 1 : 0);
  std::mt19937 random(3);
  for (std::int64_t i = 0; i < kTileKeys * size; ++i) {
    std::uint32_t code = bytes == 1 ? static_cast<std::uint32_t>(i) : static_cast<std::uint32_t>(random());
    // A denormal bfloat16 or float32 is kept by packing; any code is.
    std::memcpy(rows_start + i * bytes, &code, static_cast<std::size_t>(bytes));
  }
  TileRows rows{.begin = 3, .end = 61};
  for (std::int32_t key = rows.begin; key < rows.end; ++key) {
    rows.row[key] = rows_start + static_cast<std::int64_t>(key) * size * bytes;
  }
  const std::int32_t padded = (size + kColumnPad - 1) / kColumnPad * kColumnPad;
  std::vector<float> keys(static_cast<std::size_t>(padded * kTileKeys));
  std::vector<float> values(static_cast<std::size_t>(kTileKeys * padded), 7.0f);
  PackTask task{.storage = storage, .compute = compute, .size = size, .rows = &rows};
  task.out = keys.data();
  kernels.pack_keys(task);
  task.out = values.data();
  task.out_stride = padded;
  kernels.pack_values(task);
  for (std::int32_t key = 0; key < rows.end; ++key) {
    for (std::int32_t d = 0; d < padded; ++d) {
      const bool there = key >= rows.begin && d < size;
      const float want = there ? load_as_float(rows_start, storage, static_cast<std::int64_t>(key) * size + d) : 0.0f;
      if (d < size) expect_same(packed_element(keys, compute, d, key, kTileKeys), want);
      expect_same(packed_element(values, compute, key, d, padded), want);
      if (::testing::Test::HasFailure()) return;
    }
  }
}

TEST_P(BuildingBlocks, PackKeepsEveryCode) {
  for (std::int32_t size : {1, 8, 31, 40, 64, 128}) {
    for (DType storage :
         {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat8E4M3, DType::kFloat8E5M2, DType::kInt8}) {
      SCOPED_TRACE(std::string(dtype_name(storage)) + " x " + std::to_string(size));
      check_pack(kernels(), Compute::kFloat32, storage, size);
      const bool exact = storage != DType::kFloat32 && storage != DType::kFloat16;
      if (kernels().has_bf16 && exact) check_pack(kernels(), Compute::kBFloat16, storage, size);
    }
  }
}

TEST_P(BuildingBlocks, MatrixProduct) {
  constexpr std::int32_t kSteps = 40;
  std::mt19937 random(5);
  std::uniform_int_distribution<int> small(-8, 8);
  for (std::int32_t rows : {1, 2, 3, 5, 6, 7, 12, 13, 17}) {
    for (std::int32_t columns : {16, 32, 48, 64, 80, 112, 128}) {
      std::vector<float> a(static_cast<std::size_t>(rows * kSteps));
      std::vector<float> b(static_cast<std::size_t>(kSteps * columns));
      std::vector<float> out(static_cast<std::size_t>(rows * columns), 3.0f);
      const std::vector<float> rescale(static_cast<std::size_t>(rows), 2.0f);
      for (float& x : a) x = static_cast<float>(small(random));
      for (float& x : b) x = static_cast<float>(small(random));
      kernels().gemm({.a = a.data(),
                      .a_stride = kSteps,
                      .b = b.data(),
                      .b_stride = columns,
                      .out = out.data(),
                      .out_stride = columns,
                      .rows = rows,
                      .steps = kSteps,
                      .columns = columns,
                      .rescale = rescale.data()});
      for (std::int32_t m = 0; m < rows; ++m) {
        for (std::int32_t n = 0; n < columns; ++n) {
          float want = 6.0f;  // integers this small are exact in any order
          for (std::int32_t k = 0; k < kSteps; ++k) {
            want += a[static_cast<std::size_t>(m * kSteps + k)] * b[static_cast<std::size_t>(k * columns + n)];
          }
          ASSERT_EQ(out[static_cast<std::size_t>(m * columns + n)], want) << rows << " " << columns;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, BuildingBlocks,
                         ::testing::Values(Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16), isa_test_name);

}  // namespace
}  // namespace quire::cpu::test
