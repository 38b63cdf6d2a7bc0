// Reading of what most families' configurations say in the same words, and the frame of their load functions.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "models/blocks.h"
#include "models/model.h"

namespace quire {

struct DecoderShape {
  std::int32_t hidden = 0;
  std::int32_t intermediate = 0;
  std::int32_t num_layers = 0;
  std::int32_t num_heads = 0;
  std::int32_t num_kv_heads = 0;
  std::int32_t head_size = 0;
  float norm_eps = 1e-6f;
  bool tied = false;
};
// hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads, head_dim, rms_norm_eps
// and tie_word_embeddings (absent: `tied`). Errors: heads that do not divide.
Result<DecoderShape> read_decoder_shape(const HfConfig& config, bool tied = false);

// The window of each layer: by layer_types, else by use_sliding_window and max_window_layers, else sliding_window for
// all.
Result<std::vector<std::optional<std::int32_t>>> read_windows(const HfConfig& config, const DecoderShape& shape);
// `alternating`: the default where layer_types is absent, every second layer from the first on.
Result<std::vector<std::optional<std::int32_t>>> read_alternating_windows(const HfConfig& config,
                                                                          const DecoderShape& shape);
Result<Activation> read_activation(const HfConfig& config, std::string_view key, std::string_view fallback);

// q_proj, k_proj, v_proj and o_proj behind `prefix`, scale 1 / sqrt(head_size).
AttentionBlockSpec standard_attention_block(const DecoderShape& shape, const std::string& prefix);
BufferWidths standard_widths(const DecoderShape& shape);

// Keys that no family's logits depend on but that only some configurations carry.
std::span<const std::string_view> harmless_keys();
std::span<const std::string_view> ignored_tensors();

// `own_harmless`: keys without meaning for this family alone.
template <class Family>
Result<std::unique_ptr<DecoderModel>> load_family(LoadContext& context,
                                                  std::span<const std::string_view> own_harmless = {}) {
  auto model = std::make_unique<Family>(context);
  QUIRE_RETURN_IF_ERROR(model->load(context));
  for (const std::string_view key : own_harmless) static_cast<void>(context.config().has(key));  // counts as read
  QUIRE_RETURN_IF_ERROR(context.config().check_all_read(harmless_keys()));
  QUIRE_RETURN_IF_ERROR(context.checkpoint.check_all_used(ignored_tensors()));
  return std::unique_ptr<DecoderModel>(std::move(model));
}

}  // namespace quire
