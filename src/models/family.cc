// Implements the reading that families share.
#include "models/family.h"

#include <array>
#include <cmath>

namespace quire {

Result<DecoderShape> read_decoder_shape(const HfConfig& config, bool tied) {
  DecoderShape shape;
  QUIRE_ASSIGN_OR_RETURN(shape.hidden, config.count("hidden_size"));
  QUIRE_ASSIGN_OR_RETURN(shape.intermediate, config.count("intermediate_size"));
  QUIRE_ASSIGN_OR_RETURN(shape.num_layers, config.count("num_hidden_layers"));
  QUIRE_ASSIGN_OR_RETURN(shape.num_heads, config.count("num_attention_heads"));
  QUIRE_ASSIGN_OR_RETURN(shape.num_kv_heads, config.count_or("num_key_value_heads", shape.num_heads));
  QUIRE_ASSIGN_OR_RETURN(shape.head_size, config.count_or("head_dim", shape.hidden / shape.num_heads));
  QUIRE_ASSIGN_OR_RETURN(const double eps, config.number_or("rms_norm_eps", 1e-6));
  QUIRE_ASSIGN_OR_RETURN(shape.tied, config.flag_or("tie_word_embeddings", tied));
  shape.norm_eps = static_cast<float>(eps);
  if (shape.num_heads % shape.num_kv_heads != 0) {
    return data_loss(config.path() + ": key 'num_key_value_heads': want a divisor of " +
                     std::to_string(shape.num_heads) + ", got " + std::to_string(shape.num_kv_heads));
  }
  return shape;
}

namespace {

// Fills the windows from layer_types; false when the key is absent.
Result<bool> windows_by_type(const HfConfig& config, std::optional<std::int32_t> window,
                             std::vector<std::optional<std::int32_t>>& windows) {
  QUIRE_ASSIGN_OR_RETURN(const std::vector<std::string> types, config.texts("layer_types"));
  if (types.empty()) return false;
  if (types.size() != windows.size()) {
    return data_loss(config.path() + ": key 'layer_types': want " + std::to_string(windows.size()) + " names, got " +
                     std::to_string(types.size()));
  }
  for (std::size_t i = 0; i < types.size(); ++i) {
    if (types[i] == "full_attention") continue;
    if (types[i] != "sliding_attention" || !window) {
      return data_loss(config.path() + ": key 'layer_types': want full_attention or (with sliding_window) " +
                       "sliding_attention, got " + types[i]);
    }
    windows[i] = window;
  }
  return true;
}

Result<std::optional<std::int32_t>> read_window(const HfConfig& config) {
  if (!config.has("sliding_window")) return std::optional<std::int32_t>();
  QUIRE_ASSIGN_OR_RETURN(const std::int32_t window, config.count("sliding_window"));
  return std::optional<std::int32_t>(window);
}

}  // namespace

Result<std::vector<std::optional<std::int32_t>>> read_windows(const HfConfig& config, const DecoderShape& shape) {
  std::vector<std::optional<std::int32_t>> windows(static_cast<std::size_t>(shape.num_layers));
  QUIRE_ASSIGN_OR_RETURN(const std::optional<std::int32_t> window, read_window(config));
  const bool switched = config.has("use_sliding_window") || config.has("max_window_layers");
  QUIRE_ASSIGN_OR_RETURN(const bool use, config.flag_or("use_sliding_window", !switched));
  QUIRE_ASSIGN_OR_RETURN(const std::int32_t first, config.integer_or("max_window_layers", switched ? 28 : 0));
  QUIRE_ASSIGN_OR_RETURN(const bool typed, windows_by_type(config, window, windows));
  if (typed || !use || !window) return windows;
  for (std::int32_t i = std::max(first, 0); i < shape.num_layers; ++i) windows[static_cast<std::size_t>(i)] = window;
  return windows;
}

Result<std::vector<std::optional<std::int32_t>>> read_alternating_windows(const HfConfig& config,
                                                                          const DecoderShape& shape) {
  std::vector<std::optional<std::int32_t>> windows(static_cast<std::size_t>(shape.num_layers));
  QUIRE_ASSIGN_OR_RETURN(const std::optional<std::int32_t> window, read_window(config));
  QUIRE_ASSIGN_OR_RETURN(const bool typed, windows_by_type(config, window, windows));
  if (typed) return windows;
  for (std::size_t i = 0; i < windows.size(); i += 2) windows[i] = window;
  return windows;
}

Result<Activation> read_activation(const HfConfig& config, std::string_view key, std::string_view fallback) {
  QUIRE_ASSIGN_OR_RETURN(const std::string name, config.text_or(key, fallback));
  const Result<Activation> activation = parse_activation(name);
  if (activation.ok()) return *activation;
  return unsupported(config.path() + ": key '" + std::string(key) + "': " + activation.status().message());
}

AttentionBlockSpec standard_attention_block(const DecoderShape& shape, const std::string& prefix) {
  AttentionBlockSpec block;
  block.attention.num_heads = shape.num_heads;
  block.attention.num_kv_heads = shape.num_kv_heads;
  block.attention.head_size = shape.head_size;
  block.attention.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_size));
  block.q = prefix + "q_proj";
  block.k = prefix + "k_proj";
  block.v = prefix + "v_proj";
  block.o = prefix + "o_proj";
  block.hidden = shape.hidden;
  block.norm_eps = shape.norm_eps;
  return block;
}

BufferWidths standard_widths(const DecoderShape& shape) {
  const std::int64_t heads = static_cast<std::int64_t>(shape.num_heads) * shape.head_size;
  const std::int64_t kv_heads = static_cast<std::int64_t>(shape.num_kv_heads) * shape.head_size;
  return {.hidden = shape.hidden,
          .qkv = heads + 2 * kv_heads,
          .heads = heads,
          .wide = 2 * static_cast<std::int64_t>(shape.intermediate),
          .middle = shape.intermediate};
}

std::span<const std::string_view> harmless_keys() {
  static constexpr std::array<std::string_view, 6> kKeys = {"router_aux_loss_coef", "output_router_logits",
                                                            "lambda_std_dev",       "experts_per_token",
                                                            "aux_loss_alpha",       "seq_aux"};
  return kKeys;
}

std::span<const std::string_view> ignored_tensors() {
  static constexpr std::array<std::string_view, 2> kTensors = {"position_ids", "lm_head.weight"};
  return kTensors;
}

}  // namespace quire
