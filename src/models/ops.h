// The arithmetic between linear layers: norms, activations, sums. Inputs and sums are float32; outputs are float32 or
// bfloat16. Every function costs one pass over its rows and is bound by memory or, for activations, by exp.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "models/rows.h"
#include "quire/status.h"

namespace quire {

enum class NormKind : std::uint8_t { kRms, kLayer };

// y = x / rms(x) * weight, or (x - mean) / std * weight + bias; statistics in float32. No weight: 1.
struct Norm {
  NormKind kind = NormKind::kRms;
  std::vector<float> weight = {};
  std::vector<float> bias = {};
  float eps = 1e-6f;
  float weight_shift = 0.0f;  // added to the weight when it is loaded; Gemma's norms hold weight - 1
};
// x and y may be the same rows when both are float32.
void apply_norm(const Norm& norm, const Rows& x, std::int64_t num_rows, const Rows& y);
// RMSNorm of each head of `view` [num_rows, heads, head_size] in place (Qwen3).
void apply_head_norm(const Norm& norm, const TensorView& view);

enum class Activation : std::uint8_t { kSilu, kGelu, kGeluTanh, kRelu };
// transformers' words: "silu", "swish", "gelu", "gelu_pytorch_tanh", "gelu_new", "gelu_fast", "relu".
Result<Activation> parse_activation(std::string_view name);
// y = act(x[: width of y]) * x[width of y :], x rows of twice the width.
void apply_gated(Activation activation, const Rows& x, std::int64_t num_rows, const Rows& y);
// y = act(x).
void apply_activation(Activation activation, const Rows& x, std::int64_t num_rows, const Rows& y);

// x += y, both float32.
void add_rows(const Rows& x, std::int64_t num_rows, const Rows& y);
// y = x with y's type.
void convert_rows(const Rows& x, std::int64_t num_rows, const Rows& y);
// y[i] = table[tokens[i]] * scale as float32; the caller has checked the tokens against the table.
void embed_rows(const TensorView& table, std::span<const std::int32_t> tokens, float scale, const Rows& y);
// The sum of exp((x[i] - shift) * scale), to about 1e-6 of it; terms below e^-87 count as that.
float exp_sum(std::span<const float> x, float shift, float scale);
// x = cap * tanh(x / cap).
void cap_rows(float cap, const Rows& x, std::int64_t num_rows);

}  // namespace quire
