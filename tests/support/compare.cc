// compare_with_reference: how far a kernel may be from float64, derived from the dtypes it computes in.
#include <algorithm>
#include <cmath>

#include "reference/attention.h"
#include "support/attention_case.h"

namespace quire::testing {
namespace {

// Half a unit in the last place of a format, relative.
double rounding_unit(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return 0x1p-11;
    case DType::kBFloat16:
      return 0x1p-8;
    case DType::kFloat8E4M3:
      return 0x1p-4;
    default:
      return 0x1p-24;
  }
}

bool weights_are_bf16(const AttentionCase& c, bool isa_has_bf16_dot) {
  const DType query = c.shape().dtype;
  const DType storage = c.args().kv.dtype;
  const bool query_fits = query == DType::kBFloat16 || query == DType::kFloat8E4M3;
  return isa_has_bf16_dot && query_fits && storage != DType::kFloat32 && storage != DType::kFloat16;
}

// Sub-layer RMSNorm divides by the row's own size: an error before it grows by 1 / rms.
std::vector<double> norm_gain(const AttentionCase& c) {
  const AttentionArgs& args = c.args();
  const std::size_t width = static_cast<std::size_t>(args.num_q_heads) * static_cast<std::size_t>(args.kv.head_size_v);
  std::vector<double> gain(static_cast<std::size_t>(args.num_tokens) * width, 1.0);
  if (args.kv.num_streams != 2 || args.differential.subln_weight == nullptr) return gain;
  AttentionArgs plain = args;
  plain.differential.subln_weight = nullptr;
  std::vector<double> rows(gain.size());
  reference::attention_double(plain, rows.data(), nullptr);
  const std::size_t pair = 2 * static_cast<std::size_t>(args.kv.head_size_v);
  for (std::size_t begin = 0; begin < rows.size(); begin += pair) {
    double squares = 0.0;
    for (std::size_t i = 0; i < pair; ++i) squares += rows[begin + i] * rows[begin + i];
    const double rms = std::sqrt(squares / static_cast<double>(pair) + static_cast<double>(args.differential.eps));
    for (std::size_t i = 0; i < pair; ++i)
      gain[begin + i] = 2.0 * static_cast<double>(args.differential.post_scale) / rms;
  }
  return gain;
}

// What 16-bit matrix products round weights by.
double tensor_core_rounding(const AttentionCase& c) {
  if (c.args().kv.dtype == DType::kFloat32) return 0x1p-20;
  return c.shape().dtype == DType::kBFloat16 ? 0x1p-8 : 0x1p-11;
}

Comparison compare(const AttentionCase& c, double weight_rounding) {
  const AttentionArgs& args = c.args();
  const std::size_t width = static_cast<std::size_t>(args.num_q_heads) * static_cast<std::size_t>(args.kv.head_size_v);
  const auto tokens = static_cast<std::size_t>(args.num_tokens);
  std::vector<double> want(tokens * width);
  std::vector<double> want_lse(tokens * static_cast<std::size_t>(args.num_q_heads));
  reference::attention_double(args, want.data(), want_lse.data());
  const std::vector<double> gain = norm_gain(c);

  // Logits: float32 sums over head_size products, whose errors add up like a random walk, and a few roundings more.
  const double logit_error = 0x1p-24 * (std::sqrt(c.shape().head_size) + 8.0) * std::max(1.0, c.largest_logit());
  const double weight_error = weight_rounding + 2.0 * logit_error;
  const double out_unit = rounding_unit(args.output_dtype);
  const double streams = args.kv.num_streams == 2 ? 2.0 : 1.0;
  Comparison result;
  double squared_error = 0.0;
  double squared_want = 0.0;
  double squared_gain = 0.0;
  for (std::size_t token = 0; token < tokens; ++token) {
    const std::vector<double> got = c.output_row(static_cast<std::int32_t>(token));
    for (std::size_t i = 0; i < width; ++i) {
      const std::size_t at = token * width + i;
      double quantum = 1e-7;
      double expected = want[at];
      if (args.output_scale > 0.0f) {  // e4m3 saturates, and has steps of 2^-9 around zero
        const double limit = 448.0 * static_cast<double>(args.output_scale);
        expected = std::clamp(expected, -limit, limit);
        quantum = 0x1p-10 * static_cast<double>(args.output_scale);
      }
      if (args.output_block_scale != nullptr) {
        quantum =
            0x1p-10 * static_cast<double>(
                          args.output_block_scale[static_cast<std::int64_t>(token) * args.output_block_scale_stride +
                                                  static_cast<std::int64_t>(i) / 128]);
      }
      const double bound =
          streams * weight_error * c.largest_value() * gain[at] + 1.01 * out_unit * std::abs(expected) + quantum;
      const double error = std::abs(got[i] - expected);
      result.worst_ratio = std::max(result.worst_ratio, std::isfinite(got[i]) ? error / bound : HUGE_VAL);
      squared_error += error * error;
      squared_want += expected * expected;
      squared_gain = std::max(squared_gain, gain[at] * gain[at]);
    }
  }
  result.nmse = squared_want > 0.0 ? squared_error / squared_want : 0.0;
  const double unit = weight_error * std::max(1.0, std::sqrt(squared_gain)) + out_unit;
  result.nmse_bound = unit * unit + (args.output_scale > 0.0f ? 1e-3 : 0.0);
  result.lse_bound = logit_error + 0x1p-21;
  for (std::int32_t head = 0; head < args.num_q_heads; ++head) {
    for (std::int32_t token = 0; token < args.num_tokens; ++token) {
      const double expected = want_lse[static_cast<std::size_t>(head) * tokens + static_cast<std::size_t>(token)];
      const double got = static_cast<double>(c.lse(head, token));
      const bool both_empty = std::isinf(expected) && std::isinf(got) && got < 0.0;
      const double error = both_empty ? 0.0 : std::abs(got - expected) / std::max(1.0, std::abs(expected));
      result.worst_lse = std::max(result.worst_lse, std::isnan(error) ? HUGE_VAL : error);
    }
  }
  return result;
}

}  // namespace

Comparison compare_with_reference(const AttentionCase& c, bool isa_has_bf16_dot) {
  return compare(c, weights_are_bf16(c, isa_has_bf16_dot) ? 0x1p-8 : 0x1p-20);
}

Comparison compare_tensor_cores_with_reference(const AttentionCase& c) { return compare(c, tensor_core_rounding(c)); }

}  // namespace quire::testing
