// Implements the Llama family: pre-norm layers of grouped-query attention with rotary positions and a gated MLP.
#include "models/llama.h"

#include <cmath>
#include <utility>

#include "models/blocks.h"
#include "models/family.h"

namespace quire {
namespace {

class Llama final : public DecoderModel {
 public:
  explicit Llama(const LoadContext& context) : DecoderModel(context, attention_options(context)) {}
  Status load(LoadContext& context);

 private:
  struct Layer {
    Norm input_norm;
    AttentionBlock attention;
    Norm mlp_norm;
    GatedMlp mlp;
  };
  Status run_layer(std::int32_t index, std::int64_t num_tokens) override;

  RopeTable rope_;
  std::vector<Layer> layers_;
};

// What the architectures of the family do differently.
struct Traits {
  HasBias qkv_bias = HasBias::kNo;
  HasBias o_bias = HasBias::kNo;
  HasBias mlp_bias = HasBias::kNo;
  bool head_norm = false;
};

Result<Traits> read_traits(const LoadContext& context) {
  const HfConfig& config = context.config();
  const std::string& name = context.info->architecture;
  Traits traits;
  traits.head_norm = name == "Qwen3ForCausalLM";
  QUIRE_ASSIGN_OR_RETURN(const bool attention_bias, config.flag_or("attention_bias", false));
  QUIRE_ASSIGN_OR_RETURN(const bool mlp_bias, config.flag_or("mlp_bias", false));
  if (name == "Qwen2ForCausalLM") {
    traits.qkv_bias = HasBias::kYes;
  } else if (attention_bias) {
    traits.qkv_bias = traits.o_bias = HasBias::kYes;
  }
  if (mlp_bias) traits.mlp_bias = HasBias::kYes;
  return traits;
}

Status Llama::load(LoadContext& context) {
  const HfConfig& config = context.config();
  QUIRE_ASSIGN_OR_RETURN(const Traits traits, read_traits(context));
  QUIRE_ASSIGN_OR_RETURN(const DecoderShape shape, read_decoder_shape(config));
  QUIRE_ASSIGN_OR_RETURN(const std::vector<std::optional<std::int32_t>> windows, read_windows(config, shape));
  QUIRE_ASSIGN_OR_RETURN(const Activation activation, read_activation(config, "hidden_act", "silu"));
  QUIRE_ASSIGN_OR_RETURN(rope_,
                         make_rope_table(config, {.head_size = shape.head_size, .num_positions = info_.max_model_len}));
  const Norm norm{.eps = shape.norm_eps};
  for (std::int32_t i = 0; i < info_.num_layers; ++i) {
    const std::string prefix = "layers." + std::to_string(i) + ".";
    AttentionBlockSpec block = standard_attention_block(shape, prefix + "self_attn.");
    block.attention.sliding_window = windows[static_cast<std::size_t>(i)];
    block.qkv_bias = traits.qkv_bias;
    block.o_bias = traits.o_bias;
    if (traits.head_norm) {
      block.q_norm = prefix + "self_attn.q_norm";
      block.k_norm = prefix + "self_attn.k_norm";
    }
    QUIRE_ASSIGN_OR_RETURN(Norm input_norm, load_norm(context, prefix + "input_layernorm", shape.hidden, norm));
    QUIRE_ASSIGN_OR_RETURN(Norm mlp_norm, load_norm(context, prefix + "post_attention_layernorm", shape.hidden, norm));
    QUIRE_ASSIGN_OR_RETURN(AttentionBlock attention, AttentionBlock::load(context, attention_, block));
    QUIRE_ASSIGN_OR_RETURN(GatedMlp mlp, GatedMlp::load(context, {.prefix = prefix + "mlp.",
                                                                  .hidden = shape.hidden,
                                                                  .intermediate = shape.intermediate,
                                                                  .activation = activation,
                                                                  .bias = traits.mlp_bias}));
    layers_.push_back({std::move(input_norm), std::move(attention), std::move(mlp_norm), std::move(mlp)});
  }
  buffers_ = make_buffers(standard_widths(shape), options_.max_tokens, context.compute);
  return load_ends(context, {.embedding = "embed_tokens.weight",
                             .head = shape.tied ? "" : "lm_head.weight",
                             .final_norm = "norm",
                             .norm = norm});
}

Status Llama::run_layer(std::int32_t index, std::int64_t num_tokens) {
  const Layer& layer = layers_[static_cast<std::size_t>(index)];
  QUIRE_RETURN_IF_ERROR(add_block(layer.input_norm, num_tokens,
                                  [&] { return layer.attention.run(attention_, buffers_, num_tokens, &rope_); }));
  return add_block(layer.mlp_norm, num_tokens, [&] { return layer.mlp.run(buffers_, num_tokens); });
}

}  // namespace

Result<std::unique_ptr<DecoderModel>> load_llama(LoadContext& context) { return load_family<Llama>(context); }

}  // namespace quire
