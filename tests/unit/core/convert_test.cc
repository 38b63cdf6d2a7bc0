// Tests of the number conversions: every code of every narrow format against a decoding of its fields with ldexp.
#include "core/convert.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace quire {
namespace {

// A format told by its fields, and the functions under test.
struct Format {
  const char* name;
  int exponent_bits;
  int mantissa_bits;
  bool has_infinity;
  bool saturates;
  float (*widen)(std::uint32_t);
  std::uint32_t (*narrow)(float);

  int bits() const { return 1 + exponent_bits + mantissa_bits; }
  std::uint32_t num_codes() const { return 1u << bits(); }
};

const Format kFormats[] = {
    {"f16", 5, 10, true, false, [](std::uint32_t c) { return f16_to_float(static_cast<std::uint16_t>(c)); },
     [](float x) -> std::uint32_t { return float_to_f16(x); }},
    {"bf16", 8, 7, true, false, [](std::uint32_t c) { return bf16_to_float(static_cast<std::uint16_t>(c)); },
     [](float x) -> std::uint32_t { return float_to_bf16(x); }},
    {"e4m3", 4, 3, false, true, [](std::uint32_t c) { return e4m3_to_float(static_cast<std::uint8_t>(c)); },
     [](float x) -> std::uint32_t { return float_to_e4m3(x); }},
    {"e5m2", 5, 2, true, true, [](std::uint32_t c) { return e5m2_to_float(static_cast<std::uint8_t>(c)); },
     [](float x) -> std::uint32_t { return float_to_e5m2(x); }},
};

// The value of a code from its sign, exponent and mantissa fields.
double value_of(const Format& format, std::uint32_t code) {
  const int mantissa = static_cast<int>(code % (1u << format.mantissa_bits));
  const int exponent = static_cast<int>((code >> format.mantissa_bits) % (1u << format.exponent_bits));
  const double sign = code >> (format.bits() - 1) ? -1.0 : 1.0;
  const int bias = (1 << (format.exponent_bits - 1)) - 1;
  const int top = (1 << format.exponent_bits) - 1;
  if (exponent == top && format.has_infinity) return mantissa == 0 ? sign * INFINITY : NAN;
  if (exponent == top && mantissa == (1 << format.mantissa_bits) - 1) return NAN;
  const double fraction = std::ldexp(mantissa, -format.mantissa_bits);
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias);
  return sign * std::ldexp(1.0 + fraction, exponent - bias);
}

// Codes of the finite numbers >= 0, which ascend with their values.
std::vector<double> magnitudes_of(const Format& format) {
  std::vector<double> values;
  for (std::uint32_t code = 0; code < format.num_codes() / 2 && std::isfinite(value_of(format, code)); ++code) {
    values.push_back(value_of(format, code));
  }
  return values;
}

// The code that rounding to nearest even must give, by a search among the neighbours.
std::uint32_t nearest_code(const Format& format, const std::vector<double>& values, float number) {
  const std::uint32_t sign = std::signbit(number) ? format.num_codes() / 2 : 0;
  const double magnitude = std::fabs(static_cast<double>(number));
  const auto largest = static_cast<std::uint32_t>(values.size() - 1);
  const double last_step = values[largest] - values[largest - 1];
  if (magnitude >= values[largest]) {
    const bool rounds_up = magnitude >= values[largest] + last_step / 2;
    return sign | (rounds_up && !format.saturates ? largest + 1 : largest);
  }
  const auto above =
      static_cast<std::uint32_t>(std::upper_bound(values.begin(), values.end(), magnitude) - values.begin());
  const double down = magnitude - values[above - 1];
  const double up = values[above] - magnitude;
  if (down != up) return sign | (down < up ? above - 1 : above);
  return sign | (above % 2 == 0 ? above : above - 1);
}

class ConvertTest : public testing::TestWithParam<Format> {};

TEST_P(ConvertTest, EveryCodeWidensToItsValue) {
  const Format& format = GetParam();
  for (std::uint32_t code = 0; code < format.num_codes(); ++code) {
    const double want = value_of(format, code);
    const float got = format.widen(code);
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(got)) << code;
      ASSERT_TRUE(std::isnan(format.widen(format.narrow(got)))) << code;
    } else {
      ASSERT_EQ(static_cast<double>(got), want) << code;
      ASSERT_EQ(std::signbit(got), std::signbit(want)) << code;
    }
  }
}

TEST_P(ConvertTest, EveryCodeSurvivesTheRoundTrip) {
  const Format& format = GetParam();
  for (std::uint32_t code = 0; code < format.num_codes(); ++code) {
    const double value = value_of(format, code);
    if (std::isnan(value) || (std::isinf(value) && format.saturates)) continue;
    ASSERT_EQ(format.narrow(format.widen(code)), code);
  }
}

// The middle between neighbours, and the floats on both sides of it, are where rounding can go wrong.
TEST_P(ConvertTest, BoundariesRoundToNearestEven) {
  const Format& format = GetParam();
  const std::vector<double> values = magnitudes_of(format);
  for (std::size_t i = 0; i + 1 < values.size(); ++i) {
    const auto middle = static_cast<float>((values[i] + values[i + 1]) / 2);
    for (float number : {std::nextafter(middle, 0.0f), middle, std::nextafter(middle, INFINITY)}) {
      ASSERT_EQ(format.narrow(number), nearest_code(format, values, number)) << number;
      ASSERT_EQ(format.narrow(-number), nearest_code(format, values, -number)) << -number;
    }
  }
}

TEST_P(ConvertTest, RandomFloatsRoundToNearestEven) {
  const Format& format = GetParam();
  const std::vector<double> values = magnitudes_of(format);
  std::mt19937 random(1);
  for (int i = 0; i < 200000; ++i) {
    const float number = bits_float(static_cast<std::uint32_t>(random()));
    if (!std::isfinite(number)) continue;
    ASSERT_EQ(format.narrow(number), nearest_code(format, values, number)) << number;
    // The same mantissa at an exponent near those of the format.
    int exponent = 0;
    const float fraction = std::frexp(number, &exponent);
    const float near = std::ldexp(fraction, static_cast<int>(random() % 40) - 22);
    ASSERT_EQ(format.narrow(near), nearest_code(format, values, near)) << near;
  }
}

TEST_P(ConvertTest, BeyondTheRange) {
  const Format& format = GetParam();
  const std::vector<double> values = magnitudes_of(format);
  const auto largest = static_cast<std::uint32_t>(values.size() - 1);
  const std::uint32_t beyond = format.saturates ? largest : largest + 1;
  const std::uint32_t sign = format.num_codes() / 2;
  for (float number : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::max()}) {
    EXPECT_EQ(format.narrow(number), beyond);
    EXPECT_EQ(format.narrow(-number), beyond | sign);
  }
  EXPECT_TRUE(std::isnan(format.widen(format.narrow(std::numeric_limits<float>::quiet_NaN()))));
  EXPECT_TRUE(std::isnan(format.widen(format.narrow(bits_float(0x7f800001u)))));  // a signalling NaN
  EXPECT_TRUE(std::isnan(format.widen(format.narrow(bits_float(0xffffffffu)))));
}

INSTANTIATE_TEST_SUITE_P(Formats, ConvertTest, testing::ValuesIn(kFormats),
                         [](const auto& test) { return std::string(test.param.name); });

TEST(Convert, KnownValues) {
  EXPECT_EQ(f16_to_float(0x3c00), 1.0f);
  EXPECT_EQ(f16_to_float(0x7bff), 65504.0f);
  EXPECT_EQ(float_to_f16(65519.0f), 0x7bff);
  EXPECT_EQ(float_to_f16(65520.0f), 0x7c00);
  EXPECT_EQ(e4m3_to_float(0x7e), 448.0f);
  EXPECT_TRUE(std::isnan(e4m3_to_float(0x7f)));
  EXPECT_EQ(e5m2_to_float(0x7b), 57344.0f);
  EXPECT_EQ(e5m2_to_float(0x7c), INFINITY);
  EXPECT_EQ(float_to_bf16(1.00390625f), 0x3f80);  // half way, to even
  EXPECT_EQ(float_to_bf16(-0.0f), 0x8000);
}

#if defined(__x86_64__)
__attribute__((target("f16c"))) float widen_in_hardware(std::uint16_t code) { return _cvtsh_ss(code); }
__attribute__((target("f16c"))) std::uint16_t narrow_in_hardware(float number) {
  return _cvtss_sh(number, _MM_FROUND_TO_NEAREST_INT);
}

TEST(Convert, HalfAgreesWithF16c) {
  // Every processor with AVX2 has F16C, a name that clang 14 does not ask for.
  if (!__builtin_cpu_supports("avx2")) GTEST_SKIP() << "this processor has no F16C";
  for (std::uint32_t code = 0; code < 65536; ++code) {
    const float want = widen_in_hardware(static_cast<std::uint16_t>(code));
    if (std::isnan(want)) continue;
    ASSERT_EQ(float_bits(f16_to_float(static_cast<std::uint16_t>(code))), float_bits(want)) << code;
  }
  std::mt19937 random(2);
  for (int i = 0; i < 300000; ++i) {
    const float number = bits_float(static_cast<std::uint32_t>(random()));
    if (!std::isnan(number)) {
      ASSERT_EQ(float_to_f16(number), narrow_in_hardware(number)) << number;
    }
    const float near = std::ldexp(static_cast<float>(random()), static_cast<int>(random() % 44) - 56);
    ASSERT_EQ(float_to_f16(near), narrow_in_hardware(near)) << near;
  }
}
#endif

TEST(Convert, IntegersRoundToNearestEvenAndSaturate) {
  const auto want = [](float number) {
    return static_cast<int>(std::fmin(std::fmax(std::nearbyint(number), -128.0f), 127.0f));
  };
  for (int quarter = -4 * 140; quarter <= 4 * 140; ++quarter) {
    const float middle = static_cast<float>(quarter) / 4;
    for (float number : {std::nextafter(middle, -INFINITY), middle, std::nextafter(middle, INFINITY)}) {
      ASSERT_EQ(float_to_i8(number), want(number)) << number;
    }
  }
  EXPECT_EQ(float_to_i8(0.5f), 0);
  EXPECT_EQ(float_to_i8(1.5f), 2);
  EXPECT_EQ(float_to_i8(-2.5f), -2);
  EXPECT_EQ(float_to_i8(INFINITY), 127);
  EXPECT_EQ(float_to_i8(-INFINITY), -128);
  EXPECT_EQ(float_to_i8(1e30f), 127);
  EXPECT_EQ(float_to_i8(NAN), 0);
}

TEST(Convert, ByDType) {
  std::vector<unsigned char> memory(16);
  for (DType dtype :
       {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat8E4M3, DType::kFloat8E5M2, DType::kInt8}) {
    store_from_float(memory.data(), dtype, 1, -3.0f);
    EXPECT_EQ(load_as_float(memory.data(), dtype, 1), -3.0f) << dtype_name(dtype);
  }
  memory[2] = 200;
  EXPECT_EQ(load_as_float(memory.data(), DType::kUInt8, 2), 200.0f);
}

}  // namespace
}  // namespace quire
