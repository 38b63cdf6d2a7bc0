// Implements DeepSeek-V2. Keys and values are decompressed before they are stored, so that attention is ordinary but
// for keys that are wider than values. A key's rotated part is the same for all heads; it is put in front of each head,
// where the rotation works, and the queries' outputs are reordered to match.
#include "models/deepseek_v2.h"

#include <array>
#include <cmath>
#include <optional>
#include <utility>

#include "core/convert.h"
#include "models/blocks.h"
#include "models/family.h"
#include "models/pre_norm_decoder.h"

namespace quire {
namespace {

struct MlaShape {
  std::int32_t hidden = 0;
  std::int32_t num_heads = 0;
  std::int32_t q_rank = 0;  // 0: queries come straight from the hidden state
  std::int32_t kv_rank = 0;
  std::int32_t rope = 0;  // elements of a head that are rotated
  std::int32_t nope = 0;  // and those that are not
  std::int32_t value = 0;
  HasBias bias = HasBias::kNo;

  std::int32_t key() const { return rope + nope; }
};

// Buffers between the projections.
struct MlaBuffers {
  RowBuffer q_low;         // float32 [rows, q_rank]
  RowBuffer q_low_normed;  // compute
  RowBuffer query;         // compute [rows, heads * key]
  RowBuffer kv_low;        // float32 [rows, kv_rank + rope]
  RowBuffer latent;        // float32 [rows, kv_rank]
  RowBuffer latent_normed;
  RowBuffer kv;   // compute [rows, heads * nope, then heads * value]
  RowBuffer key;  // compute [rows, heads * key]
};

std::shared_ptr<const MlaBuffers> make_mla_buffers(const MlaShape& shape, std::int64_t rows, DType compute) {
  const std::int64_t heads = shape.num_heads;
  auto out = std::make_shared<MlaBuffers>();
  if (shape.q_rank > 0) {
    out->q_low = RowBuffer(rows, shape.q_rank, DType::kFloat32);
    out->q_low_normed = RowBuffer(rows, shape.q_rank, compute);
  }
  out->query = RowBuffer(rows, heads * shape.key(), compute);
  out->kv_low = RowBuffer(rows, shape.kv_rank + shape.rope, DType::kFloat32);
  out->latent = RowBuffer(rows, shape.kv_rank, DType::kFloat32);
  out->latent_normed = RowBuffer(rows, shape.kv_rank, compute);
  out->kv = RowBuffer(rows, heads * (shape.nope + shape.value), compute);
  out->key = RowBuffer(rows, heads * shape.key(), compute);
  return out;
}

// update = o(attention(queries, decompressed keys and values)).
class MlaBlock {
 public:
  static Result<MlaBlock> load(const LoadContext& context, const MlaShape& shape, const std::string& prefix,
                               std::shared_ptr<const MlaBuffers> buffers);
  Status add_to(PagedAttention& attention, float scale);
  Status run(PagedAttention& attention, const Buffers& buffers, std::int64_t num_tokens, RopeTable* rope) const;

 private:
  MlaBlock(const MlaShape& shape, Linear q, Linear kv_a, Linear kv_b, Linear out)
      : shape_(shape), q_(std::move(q)), kv_a_(std::move(kv_a)), kv_b_(std::move(kv_b)), out_(std::move(out)) {}
  Status project(const Buffers& buffers, std::int64_t num_tokens) const;
  void assemble_keys(std::int64_t num_tokens) const;

  MlaShape shape_;
  std::int32_t layer_ = 0;
  std::optional<Linear> q_a_;
  std::optional<Norm> q_norm_;
  Linear q_;
  Linear kv_a_;
  Norm kv_norm_;
  Linear kv_b_;
  Linear out_;
  std::shared_ptr<const MlaBuffers> own_;  // of all layers
};

// Of each head first the rotated part of a query, then the rest.
std::vector<std::int64_t> query_outputs(const MlaShape& shape) {
  std::vector<std::int64_t> out;
  for (std::int64_t head = 0; head < shape.num_heads; ++head) {
    const std::int64_t first = head * shape.key();
    for (std::int64_t i = 0; i < shape.rope; ++i) out.push_back(first + shape.nope + i);
    for (std::int64_t i = 0; i < shape.nope; ++i) out.push_back(first + i);
  }
  return out;
}

// The keys of all heads, then the values of all heads.
std::vector<std::int64_t> key_value_outputs(const MlaShape& shape) {
  const std::int64_t stride = shape.nope + shape.value;
  std::vector<std::int64_t> out;
  for (std::int64_t head = 0; head < shape.num_heads; ++head) {
    for (std::int64_t i = 0; i < shape.nope; ++i) out.push_back(head * stride + i);
  }
  for (std::int64_t head = 0; head < shape.num_heads; ++head) {
    for (std::int64_t i = 0; i < shape.value; ++i) out.push_back(head * stride + shape.nope + i);
  }
  return out;
}

Result<MlaBlock> MlaBlock::load(const LoadContext& context, const MlaShape& shape, const std::string& prefix,
                                std::shared_ptr<const MlaBuffers> buffers) {
  const std::int64_t heads = shape.num_heads;
  const Norm low_norm{.eps = 1e-6f};  // transformers gives these norms no other
  const std::vector<std::int64_t> q_order = query_outputs(shape);
  const std::vector<std::int64_t> kv_order = key_value_outputs(shape);
  const bool low_rank = shape.q_rank > 0;
  QUIRE_ASSIGN_OR_RETURN(
      Linear q, load_linear(context, {.parts = {{prefix + (low_rank ? "q_b_proj" : "q_proj"), heads * shape.key()}},
                                      .in = low_rank ? shape.q_rank : shape.hidden,
                                      .outputs = q_order}));
  QUIRE_ASSIGN_OR_RETURN(Linear kv_a,
                         load_linear(context, {.parts = {{prefix + "kv_a_proj_with_mqa", shape.kv_rank + shape.rope}},
                                               .in = shape.hidden,
                                               .bias = shape.bias}));
  QUIRE_ASSIGN_OR_RETURN(Linear kv_b,
                         load_linear(context, {.parts = {{prefix + "kv_b_proj", heads * (shape.nope + shape.value)}},
                                               .in = shape.kv_rank,
                                               .outputs = kv_order}));
  QUIRE_ASSIGN_OR_RETURN(Linear out, load_linear(context, {.parts = {{prefix + "o_proj", shape.hidden}},
                                                           .in = heads * shape.value,
                                                           .bias = shape.bias}));
  MlaBlock block(shape, std::move(q), std::move(kv_a), std::move(kv_b), std::move(out));
  QUIRE_ASSIGN_OR_RETURN(block.kv_norm_, load_norm(context, prefix + "kv_a_layernorm", shape.kv_rank, low_norm));
  if (low_rank) {
    QUIRE_ASSIGN_OR_RETURN(
        Linear q_a,
        load_linear(context, {.parts = {{prefix + "q_a_proj", shape.q_rank}}, .in = shape.hidden, .bias = shape.bias}));
    block.q_a_ = std::move(q_a);
    QUIRE_ASSIGN_OR_RETURN(block.q_norm_, load_norm(context, prefix + "q_a_layernorm", shape.q_rank, low_norm));
  }
  block.own_ = std::move(buffers);
  return block;
}

Status MlaBlock::add_to(PagedAttention& attention, float scale) {
  AttentionLayerSpec spec;
  spec.num_heads = spec.num_kv_heads = shape_.num_heads;
  spec.head_size = shape_.key();
  spec.head_size_v = shape_.value;
  spec.scale = scale;
  QUIRE_ASSIGN_OR_RETURN(layer_, attention.add_layer(spec));
  return {};
}

// Runs the projections up to queries, latents and the keys' and values' unrotated parts.
Status MlaBlock::project(const Buffers& buffers, std::int64_t num_tokens) const {
  const Rows input = buffers.normed.rows();
  if (q_a_) {
    QUIRE_RETURN_IF_ERROR(q_a_->run(input, num_tokens, own_->q_low.rows()));
    apply_norm(*q_norm_, own_->q_low.rows(), num_tokens, own_->q_low_normed.rows());
  }
  QUIRE_RETURN_IF_ERROR(q_.run(q_a_ ? own_->q_low_normed.rows() : input, num_tokens, own_->query.rows()));
  QUIRE_RETURN_IF_ERROR(kv_a_.run(input, num_tokens, own_->kv_low.rows()));
  for (std::int64_t token = 0; token < num_tokens; ++token) {
    const float* low = own_->kv_low.rows().row<float>(token);
    std::copy(low, low + shape_.kv_rank, own_->latent.rows().row<float>(token));
  }
  apply_norm(kv_norm_, own_->latent.rows(), num_tokens, own_->latent_normed.rows());
  return kv_b_.run(own_->latent_normed.rows(), num_tokens, own_->kv.rows());
}

void MlaBlock::assemble_keys(std::int64_t num_tokens) const {
  const Rows keys = own_->key.rows();
  const Rows kv = own_->kv.rows();
  const auto nope_bytes = static_cast<std::size_t>(shape_.nope * dtype_bytes(kv.dtype));
  for (std::int64_t token = 0; token < num_tokens; ++token) {
    const float* rotated = own_->kv_low.rows().row<float>(token) + shape_.kv_rank;
    const auto* rest = static_cast<const std::byte*>(kv.from(token).data);
    for (std::int64_t head = 0; head < shape_.num_heads; ++head, rest += nope_bytes) {
      const std::int64_t first = token * keys.width + head * shape_.key();
      for (std::int64_t i = 0; i < shape_.rope; ++i) store_from_float(keys.data, keys.dtype, first + i, rotated[i]);
      std::copy(rest, rest + nope_bytes,
                static_cast<std::byte*>(keys.data) + (first + shape_.rope) * dtype_bytes(keys.dtype));
    }
  }
}

Status MlaBlock::run(PagedAttention& attention, const Buffers& buffers, std::int64_t num_tokens,
                     RopeTable* rope) const {
  QUIRE_RETURN_IF_ERROR(project(buffers, num_tokens));
  assemble_keys(num_tokens);
  const std::int64_t values = static_cast<std::int64_t>(shape_.num_heads) * shape_.nope;
  AttentionCall call;
  call.query = own_->query.rows().heads(num_tokens, 0, shape_.num_heads, shape_.key());
  call.key = own_->key.rows().heads(num_tokens, 0, shape_.num_heads, shape_.key());
  call.value = own_->kv.rows().heads(num_tokens, values, shape_.num_heads, shape_.value);
  call.output = buffers.heads.rows().heads(num_tokens, 0, shape_.num_heads, shape_.value);
  call.rope = rope;
  QUIRE_RETURN_IF_ERROR(attention.run(layer_, call));
  return out_.run(buffers.heads.rows(), num_tokens, buffers.update.rows());
}

class DeepseekV2 final : public PreNormDecoder<MlaBlock> {
 public:
  explicit DeepseekV2(const LoadContext& context)
      : PreNormDecoder(context, attention_options(context, "TRITON_ATTN_DIFFKV")) {}
  Status load(LoadContext& context);
};

// Layers from first_k_dense_replace on are mixtures of experts, which this file does not have.
Status check_dense(const HfConfig& config, std::int32_t num_layers) {
  QUIRE_ASSIGN_OR_RETURN(const std::int32_t dense, config.integer_or("first_k_dense_replace", 0));
  if (dense < num_layers) {
    return unsupported(config.path() + ": key 'first_k_dense_replace': want at least " + std::to_string(num_layers) +
                       " (every layer dense), got " + std::to_string(dense));
  }
  return {};
}

Result<MlaShape> read_mla_shape(const HfConfig& config, const DecoderShape& decoder) {
  MlaShape shape{.hidden = decoder.hidden, .num_heads = decoder.num_heads};
  QUIRE_ASSIGN_OR_RETURN(shape.q_rank, config.integer_or("q_lora_rank", 0));
  QUIRE_ASSIGN_OR_RETURN(shape.kv_rank, config.count("kv_lora_rank"));
  QUIRE_ASSIGN_OR_RETURN(shape.rope, config.count("qk_rope_head_dim"));
  QUIRE_ASSIGN_OR_RETURN(shape.nope, config.count("qk_nope_head_dim"));
  QUIRE_ASSIGN_OR_RETURN(shape.value, config.count("v_head_dim"));
  QUIRE_RETURN_IF_ERROR(config.expect_number("qk_head_dim", shape.rope + shape.nope));
  QUIRE_RETURN_IF_ERROR(config.expect_flag("mlp_bias", false));
  QUIRE_ASSIGN_OR_RETURN(const bool bias, config.flag_or("attention_bias", false));
  if (bias) shape.bias = HasBias::kYes;
  if (shape.q_rank < 0 || decoder.num_kv_heads != decoder.num_heads) {
    return unsupported(config.path() +
                       ": keys 'q_lora_rank' and 'num_key_value_heads': want a rank of at least 0 and " +
                       std::to_string(decoder.num_heads) + " heads, got " + std::to_string(shape.q_rank) + " and " +
                       std::to_string(decoder.num_kv_heads));
  }
  return shape;
}

Status DeepseekV2::load(LoadContext& context) {
  const HfConfig& config = context.config();
  QUIRE_ASSIGN_OR_RETURN(const DecoderShape shape, read_decoder_shape(config));
  QUIRE_ASSIGN_OR_RETURN(const MlaShape mla, read_mla_shape(config, shape));
  QUIRE_RETURN_IF_ERROR(check_dense(config, info_.num_layers));
  QUIRE_ASSIGN_OR_RETURN(const Activation activation, read_activation(config, "hidden_act", "silu"));
  QUIRE_ASSIGN_OR_RETURN(
      rope_, make_rope_table(config,
                             {.head_size = mla.rope, .num_positions = info_.max_model_len, .style = RopeStyle::kGptj}));
  const auto scale = static_cast<float>(rope_->logit_factor / std::sqrt(static_cast<double>(mla.key())));
  const auto own = make_mla_buffers(mla, options_.max_tokens, context.compute);
  for (std::int32_t i = 0; i < info_.num_layers; ++i) {
    const std::string prefix = "layers." + std::to_string(i) + ".";
    QUIRE_ASSIGN_OR_RETURN(MlaBlock attention, MlaBlock::load(context, mla, prefix + "self_attn.", own));
    QUIRE_RETURN_IF_ERROR(attention.add_to(attention_, scale));
    QUIRE_ASSIGN_OR_RETURN(GatedMlp mlp, GatedMlp::load(context, {.prefix = prefix + "mlp.",
                                                                  .hidden = shape.hidden,
                                                                  .intermediate = shape.intermediate,
                                                                  .activation = activation}));
    QUIRE_RETURN_IF_ERROR(
        add_layer(context, prefix, {.kind = {.eps = shape.norm_eps}}, {std::move(attention), std::move(mlp)}));
  }
  buffers_ = make_buffers({.hidden = shape.hidden,
                           .heads = static_cast<std::int64_t>(mla.num_heads) * mla.value,
                           .wide = 2 * static_cast<std::int64_t>(shape.intermediate),
                           .middle = shape.intermediate},
                          options_.max_tokens, context.compute);
  return load_ends(context, standard_ends(shape));
}

// What only the mixture layers read.
constexpr std::array<std::string_view, 14> kExpertKeys = {"n_routed_experts",
                                                          "n_shared_experts",
                                                          "num_experts_per_tok",
                                                          "moe_intermediate_size",
                                                          "moe_layer_freq",
                                                          "n_group",
                                                          "topk_group",
                                                          "topk_method",
                                                          "norm_topk_prob",
                                                          "routed_scaling_factor",
                                                          "scoring_func",
                                                          "aux_loss_alpha",
                                                          "seq_aux",
                                                          "ep_size"};

}  // namespace

Result<std::unique_ptr<DecoderModel>> load_deepseek_v2(LoadContext& context) {
  return load_family<DeepseekV2>(context, kExpertKeys);
}

}  // namespace quire
