// Implements the row operations, each a plain loop over rows that OpenMP shares out when there is enough to do.
#include "models/ops.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "core/convert.h"

namespace quire {
namespace {

// Fewer elements than this are not worth waking threads for.
constexpr std::int64_t kParallelElements = 1 << 14;

void store_row(const float* values, const Rows& y, std::int64_t row) {
  if (y.dtype == DType::kBFloat16) {
    auto* out = y.row<std::uint16_t>(row);
    for (std::int64_t i = 0; i < y.width; ++i) out[i] = float_to_bf16(values[i]);
  } else if (y.row<float>(row) != values) {
    std::copy(values, values + y.width, y.row<float>(row));
  }
}

float sum_of_squares(const float* x, std::int64_t width, float shift) {
  float parts[16] = {};
  std::int64_t i = 0;
  for (; i + 16 <= width; i += 16) {
    for (int k = 0; k < 16; ++k) parts[k] += (x[i + k] - shift) * (x[i + k] - shift);
  }
  float sum = 0.0f;
  for (; i < width; ++i) sum += (x[i] - shift) * (x[i] - shift);
  for (const float part : parts) sum += part;
  return sum;
}

float sum_of(const float* x, std::int64_t width) {
  float parts[16] = {};
  std::int64_t i = 0;
  for (; i + 16 <= width; i += 16) {
    for (int k = 0; k < 16; ++k) parts[k] += x[i + k];
  }
  float sum = 0.0f;
  for (; i < width; ++i) sum += x[i];
  for (const float part : parts) sum += part;
  return sum;
}

void norm_row(const Norm& norm, const float* x, std::int64_t width, float* y) {
  const auto count = static_cast<float>(width);
  const float mean = norm.kind == NormKind::kLayer ? sum_of(x, width) / count : 0.0f;
  const float factor = 1.0f / std::sqrt(sum_of_squares(x, width, mean) / count + norm.eps);
  for (std::int64_t i = 0; i < width; ++i) y[i] = (x[i] - mean) * factor;
  if (!norm.weight.empty()) {
    for (std::int64_t i = 0; i < width; ++i) y[i] *= norm.weight[static_cast<std::size_t>(i)];
  }
  if (!norm.bias.empty()) {
    for (std::int64_t i = 0; i < width; ++i) y[i] += norm.bias[static_cast<std::size_t>(i)];
  }
}

// e^x to about two units in the last place, |x| cut to 87; no branch and no call, so that loops become vector code.
// x = n ln 2 + f: adding 1.5 * 2^23 rounds to the integer n, which then stands in the sum's last bits.
[[gnu::always_inline]] inline float fast_exp(float x) {
  constexpr float kRounder = 12582912.0f;
  const float cut = std::min(std::max(x, -87.0f), 87.0f);
  const float sum = cut * 1.44269504f + kRounder;
  const float n = sum - kRounder;
  const float f = (cut - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = f * (1.0f / 720.0f) + 1.0f / 120.0f;
  p = p * f + 1.0f / 24.0f;
  p = p * f + 1.0f / 6.0f;
  p = p * f + 0.5f;
  p = p * f + 1.0f;
  p = p * f + 1.0f;
  const std::uint32_t exponent = float_bits(sum) - float_bits(kRounder) + 127u;
  return p * bits_float(exponent << 23);
}

[[gnu::always_inline]] inline float silu(float x) { return x / (1.0f + fast_exp(-x)); }

// out = silu(gate) * up. Wider vectors change no bit: nothing is contracted or summed.
struct GatedRow {
  const float* gate = nullptr;
  const float* up = nullptr;
  float* out = nullptr;
  std::int64_t width = 0;
};
[[gnu::always_inline]] inline void gate_by_silu(const GatedRow& row) {
  for (std::int64_t i = 0; i < row.width; ++i) row.out[i] = silu(row.gate[i]) * row.up[i];
}
// Sixteen partial sums, whatever the vectors' width.
[[gnu::always_inline]] inline float exp_parts(std::span<const float> x, float shift, float scale) {
  float parts[16] = {};
  const std::size_t whole = x.size() / 16 * 16;
  for (std::size_t i = 0; i < whole; i += 16) {
    for (std::size_t k = 0; k < 16; ++k) parts[k] += fast_exp((x[i + k] - shift) * scale);
  }
  float sum = 0.0f;
  for (std::size_t i = whole; i < x.size(); ++i) sum += fast_exp((x[i] - shift) * scale);
  for (const float part : parts) sum += part;
  return sum;
}
void gated_silu_plain(const GatedRow& row) { gate_by_silu(row); }
#if defined(__x86_64__)
[[gnu::target("avx2")]] void gated_silu_avx2(const GatedRow& row) { gate_by_silu(row); }
[[gnu::target("avx2")]] float exp_sum_avx2(std::span<const float> x, float shift, float scale) {
  return exp_parts(x, shift, scale);
}
bool has_avx2() { return __builtin_cpu_supports("avx2"); }
#else
void gated_silu_avx2(const GatedRow& row) { gate_by_silu(row); }
float exp_sum_avx2(std::span<const float> x, float shift, float scale) { return exp_parts(x, shift, scale); }
bool has_avx2() { return false; }
#endif

const bool kWide = has_avx2();

void gated_silu(const GatedRow& row) { kWide ? gated_silu_avx2(row) : gated_silu_plain(row); }

float activate(Activation activation, float x) {
  switch (activation) {
    case Activation::kSilu:
      return silu(x);
    case Activation::kGelu:
      return 0.5f * x * (1.0f + std::erf(x * 0.70710678118654752f));
    case Activation::kGeluTanh:
      return 0.5f * x * (1.0f + std::tanh(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    case Activation::kRelu:
      return x > 0.0f ? x : 0.0f;
  }
  return x;
}

// Runs body(row, scratch of `width` floats) for all rows. A parallel region costs system calls even where it has one
// thread, so that few elements get none.
template <class Body>
void for_rows(std::int64_t num_rows, std::int64_t width, Body body) {
  if (num_rows == 1 || num_rows * width < kParallelElements) {
    std::vector<float> scratch(static_cast<std::size_t>(width));
    for (std::int64_t row = 0; row < num_rows; ++row) body(row, scratch.data());
    return;
  }
#pragma omp parallel
  {
    std::vector<float> scratch(static_cast<std::size_t>(width));
#pragma omp for nowait
    for (std::int64_t row = 0; row < num_rows; ++row) body(row, scratch.data());
  }
}

}  // namespace

void apply_norm(const Norm& norm, const Rows& x, std::int64_t num_rows, const Rows& y) {
  for_rows(num_rows, x.width, [&](std::int64_t row, float* scratch) {
    norm_row(norm, x.row<float>(row), x.width, scratch);
    store_row(scratch, y, row);
  });
}

void apply_head_norm(const Norm& norm, const TensorView& view) {
  const std::int64_t width = view.size(2);
  for_rows(view.size(0), width * view.size(1), [&](std::int64_t row, float* scratch) {
    for (std::int64_t head = 0; head < view.size(1); ++head) {
      const std::int64_t at = row * view.stride(0) + head * view.stride(1);
      for (std::int64_t i = 0; i < width; ++i) scratch[i] = load_as_float(view.data, view.dtype, at + i);
      norm_row(norm, scratch, width, scratch);
      for (std::int64_t i = 0; i < width; ++i) store_from_float(view.data, view.dtype, at + i, scratch[i]);
    }
  });
}

Result<Activation> parse_activation(std::string_view name) {
  if (name == "silu" || name == "swish") return Activation::kSilu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_pytorch_tanh" || name == "gelu_new" || name == "gelu_fast") return Activation::kGeluTanh;
  if (name == "relu") return Activation::kRelu;
  return unsupported("activation: want silu, gelu, gelu_pytorch_tanh, gelu_new, gelu_fast or relu, got " +
                     std::string(name));
}

void apply_gated(Activation activation, const Rows& x, std::int64_t num_rows, const Rows& y) {
  for_rows(num_rows, y.width, [&](std::int64_t row, float* scratch) {
    const float* gate = x.row<float>(row);
    const float* up = gate + y.width;
    if (activation == Activation::kSilu) {
      gated_silu({.gate = gate, .up = up, .out = scratch, .width = y.width});
    } else {
      for (std::int64_t i = 0; i < y.width; ++i) scratch[i] = activate(activation, gate[i]) * up[i];
    }
    store_row(scratch, y, row);
  });
}

void apply_activation(Activation activation, const Rows& x, std::int64_t num_rows, const Rows& y) {
  for_rows(num_rows, y.width, [&](std::int64_t row, float* scratch) {
    const float* from = x.row<float>(row);
    for (std::int64_t i = 0; i < y.width; ++i) scratch[i] = activate(activation, from[i]);
    store_row(scratch, y, row);
  });
}

void add_rows(const Rows& x, std::int64_t num_rows, const Rows& y) {
  float* to = x.row<float>(0);
  const float* from = y.row<float>(0);
  for (std::int64_t i = 0; i < num_rows * x.width; ++i) to[i] += from[i];
}

void convert_rows(const Rows& x, std::int64_t num_rows, const Rows& y) {
  for_rows(num_rows, x.width, [&](std::int64_t row, float* scratch) {
    for (std::int64_t i = 0; i < x.width; ++i) scratch[i] = load_as_float(x.data, x.dtype, row * x.width + i);
    store_row(scratch, y, row);
  });
}

void embed_rows(const TensorView& table, std::span<const std::int32_t> tokens, float scale, const Rows& y) {
  for_rows(static_cast<std::int64_t>(tokens.size()), y.width, [&](std::int64_t row, float*) {
    const std::int64_t first = tokens[static_cast<std::size_t>(row)] * y.width;
    float* out = y.row<float>(row);
    for (std::int64_t i = 0; i < y.width; ++i) out[i] = load_as_float(table.data, table.dtype, first + i) * scale;
  });
}

float exp_sum(std::span<const float> x, float shift, float scale) {
  return kWide ? exp_sum_avx2(x, shift, scale) : exp_parts(x, shift, scale);
}

void cap_rows(float cap, const Rows& x, std::int64_t num_rows) {
  for_rows(num_rows, x.width, [&](std::int64_t row, float*) {
    float* values = x.row<float>(row);
    for (std::int64_t i = 0; i < x.width; ++i) values[i] = cap * std::tanh(values[i] / cap);
  });
}

}  // namespace quire
