// Implements Gemma-2. Its norms multiply by 1 + weight, and the embedding is scaled by sqrt(hidden size).
#include "models/gemma2.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "core/convert.h"
#include "models/blocks.h"
#include "models/family.h"

namespace quire {
namespace {

class Gemma2 final : public DecoderModel {
 public:
  explicit Gemma2(const LoadContext& context) : DecoderModel(context, attention_options(context)) {}
  Status load(LoadContext& context);

 private:
  struct Layer {
    Norm input_norm;
    AttentionBlock attention;
    Norm attention_output_norm;
    Norm mlp_norm;
    GatedMlp mlp;
    Norm mlp_output_norm;
  };
  Status run_layer(std::int32_t index, std::int64_t num_tokens) override;
  void finish_logits(const Rows& logits, std::int64_t num_rows) override {
    if (final_cap_) cap_rows(*final_cap_, logits, num_rows);
  }

  RopeTable rope_;
  std::vector<Layer> layers_;
  std::optional<float> final_cap_;
};

// A cap that a null switches off; a file without the key means the published models' value.
Result<std::optional<float>> read_cap(const HfConfig& config, std::string_view key, double fallback) {
  if (!config.has(key)) {
    const std::vector<std::string> keys = config.keys();
    const bool is_null = std::find(keys.begin(), keys.end(), key) != keys.end();
    return is_null ? std::optional<float>() : std::optional<float>(static_cast<float>(fallback));
  }
  QUIRE_ASSIGN_OR_RETURN(const double cap, config.number(key));
  if (!(cap > 0.0)) return data_loss(config.path() + ": key '" + std::string(key) + "': want a positive number");
  return std::optional<float>(static_cast<float>(cap));
}

struct Terms {
  float scale = 1.0f;
  std::optional<float> cap;
  HasBias bias = HasBias::kNo;
};

Result<Terms> read_terms(const HfConfig& config) {
  Terms terms;
  QUIRE_ASSIGN_OR_RETURN(const double scalar, config.number_or("query_pre_attn_scalar", 256.0));
  if (!(scalar > 0.0)) return data_loss(config.path() + ": key 'query_pre_attn_scalar': want a positive number");
  terms.scale = static_cast<float>(1.0 / std::sqrt(scalar));
  QUIRE_ASSIGN_OR_RETURN(terms.cap, read_cap(config, "attn_logit_softcapping", 50.0));
  QUIRE_ASSIGN_OR_RETURN(const bool bias, config.flag_or("attention_bias", false));
  if (bias) terms.bias = HasBias::kYes;
  QUIRE_RETURN_IF_ERROR(config.expect_flag("use_bidirectional_attention", false));
  return terms;
}

// transformers rounds the scale to the dtype that the model runs in.
float embedding_scale(std::int32_t hidden, DType compute) {
  float scale = std::sqrt(static_cast<float>(hidden));
  store_from_float(&scale, compute, 0, scale);
  return load_as_float(&scale, compute, 0);
}

Status Gemma2::load(LoadContext& context) {
  const HfConfig& config = context.config();
  QUIRE_ASSIGN_OR_RETURN(const DecoderShape shape, read_decoder_shape(config, true));
  QUIRE_ASSIGN_OR_RETURN(const std::vector<std::optional<std::int32_t>> windows,
                         read_alternating_windows(config, shape));
  QUIRE_ASSIGN_OR_RETURN(const Activation activation,
                         read_activation(config, "hidden_activation", "gelu_pytorch_tanh"));
  QUIRE_ASSIGN_OR_RETURN(const Terms terms, read_terms(config));
  QUIRE_ASSIGN_OR_RETURN(final_cap_, read_cap(config, "final_logit_softcapping", 30.0));
  QUIRE_ASSIGN_OR_RETURN(rope_,
                         make_rope_table(config, {.head_size = shape.head_size, .num_positions = info_.max_model_len}));
  const Norm norm{.eps = shape.norm_eps, .weight_shift = 1.0f};
  for (std::int32_t i = 0; i < info_.num_layers; ++i) {
    const std::string prefix = "layers." + std::to_string(i) + ".";
    AttentionBlockSpec block = standard_attention_block(shape, prefix + "self_attn.");
    block.attention.scale = terms.scale;
    block.attention.softcap = terms.cap;
    block.attention.sliding_window = windows[static_cast<std::size_t>(i)];
    block.qkv_bias = block.o_bias = terms.bias;
    QUIRE_ASSIGN_OR_RETURN(Norm input, load_norm(context, prefix + "input_layernorm", shape.hidden, norm));
    QUIRE_ASSIGN_OR_RETURN(AttentionBlock attention, AttentionBlock::load(context, attention_, block));
    QUIRE_ASSIGN_OR_RETURN(Norm after, load_norm(context, prefix + "post_attention_layernorm", shape.hidden, norm));
    QUIRE_ASSIGN_OR_RETURN(Norm before_mlp,
                           load_norm(context, prefix + "pre_feedforward_layernorm", shape.hidden, norm));
    QUIRE_ASSIGN_OR_RETURN(GatedMlp mlp, GatedMlp::load(context, {.prefix = prefix + "mlp.",
                                                                  .hidden = shape.hidden,
                                                                  .intermediate = shape.intermediate,
                                                                  .activation = activation}));
    QUIRE_ASSIGN_OR_RETURN(Norm after_mlp,
                           load_norm(context, prefix + "post_feedforward_layernorm", shape.hidden, norm));
    layers_.push_back({std::move(input), std::move(attention), std::move(after), std::move(before_mlp), std::move(mlp),
                       std::move(after_mlp)});
  }
  buffers_ = make_buffers(standard_widths(shape), options_.max_tokens, context.compute);
  QUIRE_RETURN_IF_ERROR(load_ends(context, {.embedding = "embed_tokens.weight",
                                            .head = shape.tied ? "" : "lm_head.weight",
                                            .final_norm = "norm",
                                            .norm = norm,
                                            .embedding_scale = embedding_scale(shape.hidden, context.compute)}));
  return {};
}

Status Gemma2::run_layer(std::int32_t index, std::int64_t num_tokens) {
  const Layer& layer = layers_[static_cast<std::size_t>(index)];
  const Rows hidden = buffers_.hidden.rows();
  const Rows update = buffers_.update.rows();
  apply_norm(layer.input_norm, hidden, num_tokens, buffers_.normed.rows());
  QUIRE_RETURN_IF_ERROR(layer.attention.run(attention_, buffers_, num_tokens, &rope_));
  apply_norm(layer.attention_output_norm, update, num_tokens, update);
  add_rows(hidden, num_tokens, update);
  apply_norm(layer.mlp_norm, hidden, num_tokens, buffers_.normed.rows());
  QUIRE_RETURN_IF_ERROR(layer.mlp.run(buffers_, num_tokens));
  apply_norm(layer.mlp_output_norm, update, num_tokens, update);
  add_rows(hidden, num_tokens, update);
  return {};
}

// hidden_activation is what counts; the caches of transformers are its own matter.
constexpr std::array<std::string_view, 3> kGemma2HarmlessKeys = {"cache_implementation", "hidden_act",
                                                                 "sliding_window_size"};

}  // namespace

Result<std::unique_ptr<DecoderModel>> load_gemma2(LoadContext& context) {
  return load_family<Gemma2>(context, kGemma2HarmlessKeys);
}

}  // namespace quire
