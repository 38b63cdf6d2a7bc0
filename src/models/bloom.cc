// Implements BLOOM. Its fused projection holds query, key and value of head 0, then those of head 1 and so on.
#include "models/bloom.h"

#include <array>
#include <cmath>
#include <utility>

#include "models/alibi.h"
#include "models/blocks.h"
#include "models/family.h"
#include "models/pre_norm_decoder.h"

namespace quire {
namespace {

class Bloom final : public PreNormDecoder<AttentionBlock, PlainMlp> {
 public:
  explicit Bloom(const LoadContext& context) : PreNormDecoder(context, attention_options(context)) {}
  Status load(LoadContext& context);

 private:
  Status after_embedding(const StepInput& step) override;

  Norm embedding_norm_;
};

struct BloomShape {
  std::int32_t hidden = 0;
  std::int32_t num_heads = 0;
  std::int32_t head_size = 0;
  float norm_eps = 1e-5f;
};

Result<BloomShape> read_bloom_shape(const HfConfig& config, std::int32_t hidden) {
  BloomShape shape{.hidden = hidden};
  QUIRE_ASSIGN_OR_RETURN(shape.num_heads, config.count_or("num_attention_heads", 8));
  QUIRE_ASSIGN_OR_RETURN(shape.num_heads, config.count_or("n_head", shape.num_heads));
  QUIRE_ASSIGN_OR_RETURN(const double eps, config.number_or("layer_norm_epsilon", 1e-5));
  shape.norm_eps = static_cast<float>(eps);
  if (hidden % shape.num_heads != 0) {
    return data_loss(config.path() + ": key 'n_head': want a divisor of " + std::to_string(hidden) + ", got " +
                     std::to_string(shape.num_heads));
  }
  shape.head_size = hidden / shape.num_heads;
  QUIRE_RETURN_IF_ERROR(config.expect_flag("apply_residual_connection_post_layernorm", false));
  QUIRE_RETURN_IF_ERROR(config.expect_flag("slow_but_exact", false));
  QUIRE_RETURN_IF_ERROR(config.expect_flag("tie_word_embeddings", true));
  QUIRE_RETURN_IF_ERROR(config.expect_number("n_inner", 4.0 * hidden));
  return shape;
}

// Where all queries, then all keys, then all values are in the fused projection.
std::vector<std::int64_t> fused_outputs(const BloomShape& shape) {
  std::vector<std::int64_t> out;
  for (std::int64_t kind = 0; kind < 3; ++kind) {
    for (std::int64_t head = 0; head < shape.num_heads; ++head) {
      for (std::int64_t i = 0; i < shape.head_size; ++i) out.push_back((head * 3 + kind) * shape.head_size + i);
    }
  }
  return out;
}

Result<AttentionBlock> load_attention(const LoadContext& context, PagedAttention& attention, const BloomShape& shape,
                                      const std::string& prefix) {
  AttentionLayerSpec spec;
  spec.num_heads = spec.num_kv_heads = shape.num_heads;
  spec.head_size = shape.head_size;
  spec.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_size));
  spec.alibi_slopes = alibi_slopes(shape.num_heads);
  const std::vector<std::int64_t> outputs = fused_outputs(shape);
  QUIRE_ASSIGN_OR_RETURN(Linear qkv, load_linear(context, {.parts = {{prefix + "query_key_value", 3 * shape.hidden}},
                                                           .in = shape.hidden,
                                                           .bias = HasBias::kYes,
                                                           .outputs = outputs}));
  QUIRE_ASSIGN_OR_RETURN(
      Linear out,
      load_linear(context, {.parts = {{prefix + "dense", shape.hidden}}, .in = shape.hidden, .bias = HasBias::kYes}));
  QUIRE_ASSIGN_OR_RETURN(const std::int32_t layer, attention.add_layer(spec));
  return AttentionBlock(layer, spec, std::move(qkv), std::move(out));
}

Status Bloom::load(LoadContext& context) {
  const HfConfig& config = context.config();
  QUIRE_ASSIGN_OR_RETURN(const BloomShape shape, read_bloom_shape(config, info_.hidden_size));
  const Norm norm{.kind = NormKind::kLayer, .eps = shape.norm_eps};
  QUIRE_ASSIGN_OR_RETURN(embedding_norm_, load_norm(context, "word_embeddings_layernorm", shape.hidden, norm));
  for (std::int32_t i = 0; i < info_.num_layers; ++i) {
    const std::string prefix = "h." + std::to_string(i) + ".";
    QUIRE_ASSIGN_OR_RETURN(AttentionBlock attention,
                           load_attention(context, attention_, shape, prefix + "self_attention."));
    QUIRE_ASSIGN_OR_RETURN(PlainMlp mlp, PlainMlp::load(context, {.up = prefix + "mlp.dense_h_to_4h",
                                                                  .down = prefix + "mlp.dense_4h_to_h",
                                                                  .hidden = shape.hidden,
                                                                  .intermediate = 4 * std::int64_t{shape.hidden},
                                                                  .activation = Activation::kGeluTanh,
                                                                  .bias = HasBias::kYes}));
    QUIRE_RETURN_IF_ERROR(add_layer(context, prefix, {.kind = norm}, {std::move(attention), std::move(mlp)}));
  }
  const std::int64_t hidden = shape.hidden;
  buffers_ =
      make_buffers({.hidden = hidden, .qkv = 3 * hidden, .heads = hidden, .wide = 4 * hidden, .middle = 4 * hidden},
                   options_.max_tokens, context.compute);
  return load_ends(context, {.embedding = "word_embeddings.weight", .final_norm = "ln_f", .norm = norm});
}

Status Bloom::after_embedding(const StepInput& step) {
  const Rows hidden = buffers_.hidden.rows();
  apply_norm(embedding_norm_, hidden, static_cast<std::int64_t>(step.tokens.size()), hidden);
  return {};
}

// What the published files say of the training code's kernels.
constexpr std::array<std::string_view, 8> kBloomHarmlessKeys = {"attention_softmax_in_fp32",
                                                                "bias_dropout_fusion",
                                                                "masked_softmax_fusion",
                                                                "n_embed",
                                                                "offset_alibi",
                                                                "skip_bias_add",
                                                                "skip_bias_add_qkv",
                                                                "use_return_dict"};

}  // namespace

Result<std::unique_ptr<DecoderModel>> load_bloom(LoadContext& context) {
  return load_family<Bloom>(context, kBloomHarmlessKeys);
}

}  // namespace quire
