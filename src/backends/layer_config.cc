// Checks of layer configurations, and the terms that bound a layer's keys.
#include "backends/layer_config.h"

#include <cmath>
#include <string>

#include "quire/ops.h"

namespace quire::backends {
namespace {

using std::to_string;

Status wrong_config(std::string_view name, const std::string& want, const std::string& got) {
  return invalid_argument(std::string(name) + ": want " + want + ", got " + got);
}

Status not_in_layer(const BackendTraits& traits, std::string_view what) {
  return unsupported(std::string(what) + ": not supported by " + std::string(traits.name));
}

Status check_type(const BackendTraits& traits, AttentionType type) {
  if ((traits.attn_types & type_bit(type)) != 0) return {};
  return unsupported("attn_type: " + std::string(attention_type_name(type)) + " is not supported by " +
                     std::string(traits.name));
}

// Head counts and sizes; `Config` is ImplConfig or BuilderConfig.
template <class Config>
Status check_heads(const BackendTraits& traits, const Config& config) {
  const std::int32_t head_size_v = config.head_size_v == 0 ? config.head_size : config.head_size_v;
  if (config.num_heads <= 0) return wrong_config("num_heads", "> 0", to_string(config.num_heads));
  if (config.num_kv_heads <= 0) return wrong_config("num_kv_heads", "> 0", to_string(config.num_kv_heads));
  if (config.num_heads % config.num_kv_heads != 0) {
    return wrong_config("num_heads", "a multiple of num_kv_heads " + to_string(config.num_kv_heads),
                        to_string(config.num_heads));
  }
  const bool paired = traits.format == KVCacheFormat::kDifferential;
  if (paired && config.num_kv_heads % 2 != 0)
    return wrong_config("num_kv_heads", "an even number", to_string(config.num_kv_heads));
  if (config.head_size < kMinHeadSize || head_size_v < kMinHeadSize) {
    return wrong_config("head_size", "at least " + to_string(kMinHeadSize) + " for " + std::string(traits.name),
                        to_string(config.head_size) + " with head_size_v " + to_string(head_size_v));
  }
  if (head_size_v != config.head_size && traits.format != KVCacheFormat::kPackedKV) {
    return wrong_config(
        "head_size_v",
        "head_size " + to_string(config.head_size) + " (TRITON_ATTN_DIFFKV takes values of another width)",
        to_string(head_size_v));
  }
  if (config.block_size <= 0) return wrong_config("block_size", "> 0", to_string(config.block_size));
  return {};
}

Status check_vector(std::string_view name, std::span<const float> values, std::int32_t wanted) {
  if (!values.empty() && values.size() != static_cast<std::size_t>(wanted)) {
    return wrong_config(name, to_string(wanted) + " values", to_string(values.size()));
  }
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (std::isnan(values[i])) return wrong_config(std::string(name) + "[" + to_string(i) + "]", "a number", "nan");
  }
  return {};
}

Status check_terms(const BackendTraits& traits, const ImplConfig& config) {
  if (!std::isfinite(config.scale)) return wrong_config("scale", "a finite number", to_string(config.scale));
  const float cap = config.logits_soft_cap.value_or(0.0f);
  if (!std::isfinite(cap) || cap < 0.0f) return wrong_config("logits_soft_cap", "a finite number >= 0", to_string(cap));
  QUIRE_RETURN_IF_ERROR(check_vector("alibi_slopes", config.alibi_slopes, config.num_heads));
  QUIRE_RETURN_IF_ERROR(check_vector("sinks", config.sinks, config.num_heads));
  if (!config.sinks.empty() && !traits.sinks) return not_in_layer(traits, "sinks");
  if (config.differential && traits.format != KVCacheFormat::kDifferential) return not_in_layer(traits, "differential");
  const bool alibi_sqrt = !config.alibi_slopes.empty() && config.alibi == AlibiKind::kSqrt;
  if (alibi_sqrt && !traits.alibi_sqrt) return not_in_layer(traits, "alibi: square-root ALiBi");
  return {};
}

Status check_cache_dtype(const ImplConfig& config) {
  if (!is_activation(config.dtype)) {
    return wrong_config("dtype", "float32, float16 or bfloat16", std::string(dtype_name(config.dtype)));
  }
  const bool encoder = config.attn_type == AttentionType::kEncoder || config.attn_type == AttentionType::kEncoderOnly;
  if (encoder && is_quantized(config.kv_cache_dtype)) {
    return unsupported("kv_cache_dtype: encoder attention has no cache, want an unquantised dtype, got " +
                       std::string(kv_cache_dtype_name(config.kv_cache_dtype)));
  }
  return {};
}

template <class Config>
Result<Variant> bounds_of(const Config& config) {
  Variant bounds;
  if (config.sliding_window) {
    if (*config.sliding_window < 1) return wrong_config("sliding_window", ">= 1", to_string(*config.sliding_window));
    bounds.window_left = *config.sliding_window - 1;
    bounds.window_right = *config.sliding_window - 1;
  }
  if (config.chunk < 0) return wrong_config("chunk", ">= 0", to_string(config.chunk));
  if (config.chunk_lookback < 0) return wrong_config("chunk_lookback", ">= 0", to_string(config.chunk_lookback));
  bounds.chunk = config.chunk;
  bounds.chunk_lookback = config.chunk_lookback;
  const bool cross = config.attn_type == AttentionType::kEncoderDecoder;
  if (cross && (config.sliding_window || config.chunk > 0)) {
    return unsupported("sliding_window, chunk: cross attention has no distance between queries and keys, want none");
  }
  return bounds;
}

// A side of a window: -1 is open.
bool side_covers(std::int32_t plan, std::int32_t layer) { return plan < 0 || (layer >= 0 && layer <= plan); }

}  // namespace

Status check_impl_config(const BackendTraits& traits, const ImplConfig& config) {
  QUIRE_RETURN_IF_ERROR(check_type(traits, config.attn_type));
  QUIRE_RETURN_IF_ERROR(check_heads(traits, config));
  QUIRE_RETURN_IF_ERROR(check_terms(traits, config));
  QUIRE_RETURN_IF_ERROR(check_cache_dtype(config));
  QUIRE_RETURN_IF_ERROR(check_backplane(config.runtime));
  return bounding_terms(config).status();
}

Status check_builder_config(const BackendTraits& traits, const BuilderConfig& config) {
  QUIRE_RETURN_IF_ERROR(check_type(traits, config.attn_type));
  QUIRE_RETURN_IF_ERROR(check_heads(traits, config));
  if (config.tree && !traits.trees) return not_in_layer(traits, "tree");
  if (config.num_speculative_tokens < 0) {
    return wrong_config("num_speculative_tokens", ">= 0", to_string(config.num_speculative_tokens));
  }
  if (config.runtime.backplane == Backplane::kCuda) QUIRE_RETURN_IF_ERROR(check_backplane(config.runtime));
  return bounding_terms(config).status();
}

Result<Variant> bounding_terms(const BuilderConfig& config) { return bounds_of(config); }
Result<Variant> bounding_terms(const ImplConfig& config) { return bounds_of(config); }

bool bounds_cover(const Variant& plan, const Variant& layer) {
  const bool window =
      side_covers(plan.window_left, layer.window_left) && side_covers(plan.window_right, layer.window_right);
  const bool chunk = plan.chunk == 0 || (plan.chunk == layer.chunk && plan.chunk_lookback >= layer.chunk_lookback);
  return window && chunk;
}

}  // namespace quire::backends
