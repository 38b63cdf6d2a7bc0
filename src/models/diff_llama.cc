// Implements DiffLlama. A differential layer of quire pairs heads 2i and 2i + 1; the checkpoint pairs head i with head
// i + num_heads / 2, and likewise the heads of keys and values, so the projections' outputs are reordered when they are
// loaded. The result comes out as the output projection expects it: both halves of pair i, one after the other.
#include "models/diff_llama.h"

#include <utility>

#include "models/blocks.h"
#include "models/family.h"
#include "models/pre_norm_decoder.h"

namespace quire {
namespace {

class DiffLlama final : public PreNormDecoder<> {
 public:
  explicit DiffLlama(const LoadContext& context)
      : PreNormDecoder(context, attention_options(context, "DIFFERENTIAL_FLASH_ATTN")) {}
  Status load(LoadContext& context);
};

// Appends the outputs of `num_heads` heads that start at `first` so that heads i and i + num_heads / 2 are neighbours.
void pair_heads(std::int64_t first, const DecoderShape& shape, std::int32_t num_heads, std::vector<std::int64_t>& out) {
  for (std::int32_t head = 0; head < num_heads; ++head) {
    const std::int64_t from = head / 2 + (head % 2) * (num_heads / 2);
    for (std::int64_t i = 0; i < shape.head_size; ++i) out.push_back(first + from * shape.head_size + i);
  }
}

std::vector<std::int64_t> paired_outputs(const DecoderShape& shape) {
  const std::int64_t q_width = static_cast<std::int64_t>(shape.num_heads) * shape.head_size;
  const std::int64_t kv_width = static_cast<std::int64_t>(shape.num_kv_heads) * shape.head_size;
  std::vector<std::int64_t> out;
  pair_heads(0, shape, shape.num_heads, out);
  pair_heads(q_width, shape, shape.num_kv_heads, out);
  pair_heads(q_width + kv_width, shape, shape.num_kv_heads, out);
  return out;
}

// The norm of a pair has no weight in the checkpoint.
Result<DifferentialLayer> load_differential(const LoadContext& context, const DecoderShape& shape, std::int32_t index) {
  const std::string prefix = "layers." + std::to_string(index) + ".self_attn.lambda_";
  const auto read = [&](const char* name) { return context.checkpoint.floats(prefix + name, {shape.head_size}); };
  DifferentialLayer out;
  out.layer_idx = index;
  QUIRE_ASSIGN_OR_RETURN(out.lambda_q1, read("q1"));
  QUIRE_ASSIGN_OR_RETURN(out.lambda_k1, read("k1"));
  QUIRE_ASSIGN_OR_RETURN(out.lambda_q2, read("q2"));
  QUIRE_ASSIGN_OR_RETURN(out.lambda_k2, read("k2"));
  out.subln_weight.assign(2 * static_cast<std::size_t>(shape.head_size), 1.0f);
  out.subln_eps = shape.norm_eps;
  return out;
}

Status check_even_heads(const HfConfig& config, const DecoderShape& shape) {
  for (const auto& [key, count] :
       {std::pair("num_attention_heads", shape.num_heads), std::pair("num_key_value_heads", shape.num_kv_heads)}) {
    if (count % 2 == 0) continue;
    return data_loss(config.path() + ": key '" + key + "': want an even number, for heads are paired, got " +
                     std::to_string(count));
  }
  return {};
}

Status DiffLlama::load(LoadContext& context) {
  const HfConfig& config = context.config();
  QUIRE_ASSIGN_OR_RETURN(const DecoderShape shape, read_decoder_shape(config));
  QUIRE_RETURN_IF_ERROR(check_even_heads(config, shape));
  QUIRE_ASSIGN_OR_RETURN(const Activation activation, read_activation(config, "hidden_act", "silu"));
  QUIRE_ASSIGN_OR_RETURN(const bool bias, config.flag_or("attention_bias", false));
  QUIRE_ASSIGN_OR_RETURN(rope_,
                         make_rope_table(config, {.head_size = shape.head_size, .num_positions = info_.max_model_len}));
  return load_standard(context, shape,
                       [&](std::int32_t i, const std::string& prefix, AttentionBlockSpec& block) -> Result<GatedMlp> {
                         QUIRE_ASSIGN_OR_RETURN(block.attention.differential, load_differential(context, shape, i));
                         block.outputs = paired_outputs(shape);
                         block.qkv_bias = block.o_bias = bias ? HasBias::kYes : HasBias::kNo;
                         return GatedMlp::load(context, {.prefix = prefix + "mlp.",
                                                         .hidden = shape.hidden,
                                                         .intermediate = shape.intermediate,
                                                         .activation = activation});
                       });
}

}  // namespace

Result<std::unique_ptr<DecoderModel>> load_diff_llama(LoadContext& context) { return load_family<DiffLlama>(context); }

}  // namespace quire
