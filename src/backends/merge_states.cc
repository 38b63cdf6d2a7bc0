// merge_attn_states: two attention results over disjoint keys become one.
// Cost: reads two outputs and writes one, 3 * num_tokens * num_heads * head_size_v elements; bound by memory.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "core/convert.h"
#include "cuda/attention.h"
#include "quire/ops.h"

namespace quire {
namespace {

constexpr float kNoKeys = -std::numeric_limits<float>::infinity();

Status check_lse(const MergeStatesArgs& args, std::string_view name, const TensorView& lse) {
  return check_tensor(lse, {name, {DType::kFloat32}, {args.prefix_output.size(1), args.prefix_output.size(0)}, false});
}

Status check_merge(const MergeStatesArgs& args) {
  const std::initializer_list<DType> activations = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
  QUIRE_RETURN_IF_ERROR(check_tensor(args.prefix_output, {"prefix_output", activations, {kAny, kAny, kAny}}));
  const TensorView& first = args.prefix_output;
  QUIRE_RETURN_IF_ERROR(check_tensor(args.suffix_output,
                                     {"suffix_output", {first.dtype}, {first.size(0), first.size(1), first.size(2)}}));
  QUIRE_RETURN_IF_ERROR(check_lse(args, "prefix_lse", args.prefix_lse));
  QUIRE_RETURN_IF_ERROR(check_lse(args, "suffix_lse", args.suffix_lse));
  if (!std::isfinite(args.output_scale) || args.output_scale < 0.0f) {
    return invalid_argument("output_scale: want a finite number >= 0, got " + std::to_string(args.output_scale));
  }
  const std::initializer_list<std::int64_t> shape = {first.size(0), first.size(1), first.size(2)};
  if (args.output_scale > 0.0f) {
    QUIRE_RETURN_IF_ERROR(check_tensor(args.output, {"output", {DType::kFloat8E4M3}, shape}));
  } else {
    QUIRE_RETURN_IF_ERROR(check_tensor(args.output, {"output", activations, shape}));
  }
  if (!args.output_lse.empty()) QUIRE_RETURN_IF_ERROR(check_lse(args, "output_lse", args.output_lse));
  return {};
}

// How much of each side a row of the result takes.
struct Weights {
  float prefix = 0.0f;
  float suffix = 0.0f;
  float lse = kNoKeys;
};

Weights weigh(float prefix_lse, float suffix_lse) {
  const float infinity = std::numeric_limits<float>::infinity();
  if (prefix_lse == infinity) prefix_lse = kNoKeys;
  if (suffix_lse == infinity) suffix_lse = kNoKeys;
  const float largest = std::max(prefix_lse, suffix_lse);
  if (largest == kNoKeys) return {};
  const float prefix = std::exp(prefix_lse - largest);
  const float suffix = std::exp(suffix_lse - largest);
  const float sum = prefix + suffix;
  return {prefix / sum, suffix / sum, std::log(sum) + largest};
}

std::int64_t row_at(const TensorView& tensor, std::int64_t token, std::int64_t head) {
  return token * tensor.stride(0) + head * tensor.stride(1);
}

// A side of weight 0 is not read: it may hold anything where it has no keys.
void merge_row(const MergeStatesArgs& args, std::int64_t token, std::int64_t head, const Weights& weights) {
  const std::int64_t prefix = row_at(args.prefix_output, token, head);
  const std::int64_t suffix = row_at(args.suffix_output, token, head);
  const std::int64_t output = row_at(args.output, token, head);
  const DType dtype = args.prefix_output.dtype;
  const float inverse_scale = args.output_scale > 0.0f ? 1.0f / args.output_scale : 1.0f;
  for (std::int64_t d = 0; d < args.output.size(2); ++d) {
    float value = 0.0f;
    if (weights.prefix > 0.0f) value += load_as_float(args.prefix_output.data, dtype, prefix + d) * weights.prefix;
    if (weights.suffix > 0.0f) value += load_as_float(args.suffix_output.data, dtype, suffix + d) * weights.suffix;
    store_from_float(args.output.data, args.output.dtype, output + d, value * inverse_scale);
  }
}

}  // namespace

Status merge_attn_states(const MergeStatesArgs& args, const Runtime& runtime) {
  QUIRE_RETURN_IF_ERROR(check_merge(args));
  if (runtime.backplane == Backplane::kCuda) return cuda::merge_attn_states(args, runtime);
  const std::int64_t tokens = args.output.size(0);
  const std::int64_t with_context = args.prefill_tokens_with_context < 0 ? tokens : args.prefill_tokens_with_context;
  for (std::int64_t head = 0; head < args.output.size(1); ++head) {
    for (std::int64_t token = 0; token < tokens; ++token) {
      const auto lse_of = [&](const TensorView& lse) {
        return lse.as<float>()[head * lse.stride(0) + token * lse.stride(1)];
      };
      const float prefix_lse = token < with_context ? lse_of(args.prefix_lse) : kNoKeys;
      const Weights weights = weigh(prefix_lse, lse_of(args.suffix_lse));
      merge_row(args, token, head, weights);
      if (args.output_lse.empty()) continue;
      args.output_lse.as<float>()[head * args.output_lse.stride(0) + token * args.output_lse.stride(1)] = weights.lse;
    }
  }
  return {};
}

}  // namespace quire
