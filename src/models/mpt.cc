// Implements MPT as transformers runs it: ALiBi always, norms without biases, exact GELU.
#include "models/mpt.h"

#include <array>
#include <cmath>
#include <utility>

#include "models/alibi.h"
#include "models/blocks.h"
#include "models/family.h"
#include "models/pre_norm_decoder.h"

namespace quire {
namespace {

class Mpt final : public PreNormDecoder<AttentionBlock, PlainMlp> {
 public:
  explicit Mpt(const LoadContext& context) : PreNormDecoder(context, attention_options(context)) {}
  Status load(LoadContext& context);
};

struct MptShape {
  std::int32_t hidden = 0;
  std::int32_t num_heads = 0;
  std::int32_t head_size = 0;
  std::int64_t intermediate = 0;
  float norm_eps = 1e-5f;
  float scale = 1.0f;
  float clip = 0.0f;  // 0: none
  bool tied = true;
};

// Reads "attn_config"; published files without it mean its defaults.
Status read_attention(const HfConfig& config, MptShape& shape) {
  shape.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_size));
  if (!config.has("attn_config")) return {};
  QUIRE_ASSIGN_OR_RETURN(const HfConfig attention, config.object("attn_config"));
  QUIRE_RETURN_IF_ERROR(attention.expect_text("attn_type", "multihead_attention"));
  QUIRE_RETURN_IF_ERROR(attention.expect_flag("alibi", true));
  QUIRE_RETURN_IF_ERROR(attention.expect_number("alibi_bias_max", 8.0));  // transformers takes 8 whatever it says
  QUIRE_RETURN_IF_ERROR(attention.expect_flag("prefix_lm", false));
  QUIRE_RETURN_IF_ERROR(attention.expect_flag("qk_ln", false));
  QUIRE_RETURN_IF_ERROR(attention.expect_flag("attn_uses_sequence_id", false));
  QUIRE_ASSIGN_OR_RETURN(const double scale, attention.number_or("softmax_scale", shape.scale));
  QUIRE_ASSIGN_OR_RETURN(const double clip, attention.number_or("clip_qkv", 0.0));
  shape.scale = static_cast<float>(scale);
  shape.clip = static_cast<float>(clip);
  if (!(scale > 0.0) || !(clip >= 0.0)) {
    return data_loss(config.path() + ": keys 'softmax_scale' and 'clip_qkv' of 'attn_config': want positive numbers");
  }
  return attention.check_all_read(std::array<std::string_view, 1>{"attn_impl"});
}

Result<MptShape> read_mpt_shape(const HfConfig& config, std::int32_t hidden) {
  MptShape shape{.hidden = hidden};
  QUIRE_ASSIGN_OR_RETURN(shape.num_heads, config.count("n_heads"));
  if (hidden % shape.num_heads != 0) {
    return data_loss(config.path() + ": key 'n_heads': want a divisor of " + std::to_string(hidden) + ", got " +
                     std::to_string(shape.num_heads));
  }
  shape.head_size = hidden / shape.num_heads;
  QUIRE_RETURN_IF_ERROR(read_attention(config, shape));
  QUIRE_ASSIGN_OR_RETURN(const double eps, config.number_or("layer_norm_epsilon", 1e-5));
  shape.norm_eps = static_cast<float>(eps);
  QUIRE_ASSIGN_OR_RETURN(const std::int32_t expansion, config.count_or("expansion_ratio", 4));
  shape.intermediate = std::int64_t{expansion} * hidden;
  QUIRE_ASSIGN_OR_RETURN(shape.tied, config.flag_or("tie_word_embeddings", true));
  QUIRE_RETURN_IF_ERROR(config.expect_flag("no_bias", true));
  QUIRE_RETURN_IF_ERROR(config.expect_text("norm_type", "low_precision_layernorm"));
  return shape;
}

Result<AttentionBlock> load_attention(const LoadContext& context, PagedAttention& attention, const MptShape& shape,
                                      const std::string& prefix) {
  AttentionLayerSpec spec;
  spec.num_heads = spec.num_kv_heads = shape.num_heads;
  spec.head_size = shape.head_size;
  spec.scale = shape.scale;
  spec.alibi_slopes = mpt_alibi_slopes(shape.num_heads);
  QUIRE_ASSIGN_OR_RETURN(Linear qkv, load_linear(context, {.parts = {{prefix + "Wqkv", 3 * std::int64_t{shape.hidden}}},
                                                           .in = shape.hidden}));
  QUIRE_ASSIGN_OR_RETURN(Linear out,
                         load_linear(context, {.parts = {{prefix + "out_proj", shape.hidden}}, .in = shape.hidden}));
  QUIRE_ASSIGN_OR_RETURN(const std::int32_t layer, attention.add_layer(spec));
  AttentionBlock block(layer, spec, std::move(qkv), std::move(out));
  block.set_clip(shape.clip);
  return block;
}

Status Mpt::load(LoadContext& context) {
  const HfConfig& config = context.config();
  QUIRE_ASSIGN_OR_RETURN(const MptShape shape, read_mpt_shape(config, info_.hidden_size));
  const Norm norm{.kind = NormKind::kLayer, .eps = shape.norm_eps};
  for (std::int32_t i = 0; i < info_.num_layers; ++i) {
    const std::string prefix = "blocks." + std::to_string(i) + ".";
    QUIRE_ASSIGN_OR_RETURN(AttentionBlock attention, load_attention(context, attention_, shape, prefix + "attn."));
    QUIRE_ASSIGN_OR_RETURN(PlainMlp mlp, PlainMlp::load(context, {.up = prefix + "ffn.up_proj",
                                                                  .down = prefix + "ffn.down_proj",
                                                                  .hidden = shape.hidden,
                                                                  .intermediate = shape.intermediate}));
    QUIRE_RETURN_IF_ERROR(add_layer(context, prefix,
                                    {.before_attention = "norm_1", .before_mlp = "norm_2", .kind = norm},
                                    {std::move(attention), std::move(mlp)}));
  }
  const std::int64_t hidden = shape.hidden;
  buffers_ = make_buffers(
      {.hidden = hidden, .qkv = 3 * hidden, .heads = hidden, .wide = shape.intermediate, .middle = shape.intermediate},
      options_.max_tokens, context.compute);
  return load_ends(
      context,
      {.embedding = "wte.weight", .head = shape.tied ? "" : "lm_head.weight", .final_norm = "norm_f", .norm = norm});
}

// What transformers does not look at either.
constexpr std::array<std::string_view, 6> kMptHarmlessKeys = {"embedding_fraction", "init_config",     "tokenizer_name",
                                                              "init_device",        "learned_pos_emb", "verbose"};

}  // namespace

Result<std::unique_ptr<DecoderModel>> load_mpt(LoadContext& context) {
  return load_family<Mpt>(context, kMptHarmlessKeys);
}

}  // namespace quire
