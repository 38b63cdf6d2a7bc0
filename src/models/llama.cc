// Implements the Llama family: pre-norm layers of grouped-query attention with rotary positions and a gated MLP.
#include "models/llama.h"

#include <cmath>
#include <utility>

#include "models/blocks.h"
#include "models/family.h"
#include "models/pre_norm_decoder.h"

namespace quire {
namespace {

class Llama final : public PreNormDecoder<> {
 public:
  explicit Llama(const LoadContext& context) : PreNormDecoder(context, attention_options(context)) {}
  Status load(LoadContext& context);
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
  return load_standard(context, shape,
                       [&](std::int32_t i, const std::string& prefix, AttentionBlockSpec& block) -> Result<GatedMlp> {
                         block.attention.sliding_window = windows[static_cast<std::size_t>(i)];
                         block.qkv_bias = traits.qkv_bias;
                         block.o_bias = traits.o_bias;
                         if (traits.head_norm) {
                           block.q_norm = prefix + "self_attn.q_norm";
                           block.k_norm = prefix + "self_attn.k_norm";
                         }
                         return GatedMlp::load(context, {.prefix = prefix + "mlp.",
                                                         .hidden = shape.hidden,
                                                         .intermediate = shape.intermediate,
                                                         .activation = activation,
                                                         .bias = traits.mlp_bias});
                       });
}

}  // namespace

Result<std::unique_ptr<DecoderModel>> load_llama(LoadContext& context) { return load_family<Llama>(context); }

}  // namespace quire
