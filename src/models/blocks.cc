// Implements the shared blocks.
#include "models/blocks.h"

#include <algorithm>
#include <utility>

#include "core/convert.h"

namespace quire {
namespace {

std::int32_t value_size(const AttentionLayerSpec& spec) {
  return spec.head_size_v == 0 ? spec.head_size : spec.head_size_v;
}

void clip_rows(const Rows& rows, std::int64_t num_rows, float limit) {
  for (std::int64_t i = 0; i < num_rows * rows.width; ++i) {
    const float value = load_as_float(rows.data, rows.dtype, i);
    store_from_float(rows.data, rows.dtype, i, std::clamp(value, -limit, limit));
  }
}

}  // namespace

std::int64_t qkv_width(const AttentionLayerSpec& spec) {
  return static_cast<std::int64_t>(spec.num_heads + spec.num_kv_heads) * spec.head_size +
         static_cast<std::int64_t>(spec.num_kv_heads) * value_size(spec);
}

std::int64_t heads_width(const AttentionLayerSpec& spec) {
  return static_cast<std::int64_t>(spec.num_heads) * value_size(spec);
}

AttentionBlock::AttentionBlock(std::int32_t layer, const AttentionLayerSpec& spec, Linear qkv, Linear out)
    : layer_(layer),
      num_heads_(spec.num_heads),
      num_kv_heads_(spec.num_kv_heads),
      head_size_(spec.head_size),
      qkv_(std::move(qkv)),
      out_(std::move(out)) {}

Result<AttentionBlock> AttentionBlock::load(const LoadContext& context, PagedAttention& attention,
                                            const AttentionBlockSpec& spec) {
  const AttentionLayerSpec& shape = spec.attention;
  const std::int64_t q_width = static_cast<std::int64_t>(shape.num_heads) * shape.head_size;
  const std::int64_t kv_width = static_cast<std::int64_t>(shape.num_kv_heads) * shape.head_size;
  QUIRE_ASSIGN_OR_RETURN(Linear qkv,
                         load_linear(context, {.parts = {{spec.q, q_width}, {spec.k, kv_width}, {spec.v, kv_width}},
                                               .in = spec.hidden,
                                               .bias = spec.qkv_bias,
                                               .outputs = spec.outputs}));
  QUIRE_ASSIGN_OR_RETURN(Linear out,
                         load_linear(context, {.parts = {{spec.o, spec.hidden}}, .in = q_width, .bias = spec.o_bias}));
  QUIRE_ASSIGN_OR_RETURN(const std::int32_t layer, attention.add_layer(shape));
  AttentionBlock block(layer, shape, std::move(qkv), std::move(out));
  const Norm kind{.eps = spec.norm_eps};
  if (!spec.q_norm.empty()) {
    QUIRE_ASSIGN_OR_RETURN(block.q_norm_, load_norm(context, spec.q_norm, shape.head_size, kind));
    QUIRE_ASSIGN_OR_RETURN(block.k_norm_, load_norm(context, spec.k_norm, shape.head_size, kind));
  }
  return block;
}

Status AttentionBlock::run(PagedAttention& attention, const Buffers& buffers, std::int64_t num_tokens,
                           RopeTable* rope) const {
  const Rows qkv = buffers.qkv.rows();
  QUIRE_RETURN_IF_ERROR(qkv_.run(buffers.normed.rows(), num_tokens, qkv));
  if (clip_ > 0.0f) clip_rows(qkv, num_tokens, clip_);
  const std::int64_t q_width = static_cast<std::int64_t>(num_heads_) * head_size_;
  const std::int64_t k_width = static_cast<std::int64_t>(num_kv_heads_) * head_size_;
  AttentionCall call;
  call.query = qkv.heads(num_tokens, 0, num_heads_, head_size_);
  call.key = qkv.heads(num_tokens, q_width, num_kv_heads_, head_size_);
  call.value = qkv.heads(num_tokens, q_width + k_width, num_kv_heads_, head_size_);
  call.output = buffers.heads.rows().heads(num_tokens, 0, num_heads_, head_size_);
  call.rope = rope;
  if (q_norm_) apply_head_norm(*q_norm_, call.query);
  if (k_norm_) apply_head_norm(*k_norm_, call.key);
  QUIRE_RETURN_IF_ERROR(attention.run(layer_, call));
  return out_.run(buffers.heads.rows(), num_tokens, buffers.update.rows());
}

Result<GatedMlp> GatedMlp::load(const LoadContext& context, const Spec& spec) {
  QUIRE_ASSIGN_OR_RETURN(Linear gate_up, load_linear(context, {.parts = {{spec.prefix + "gate_proj", spec.intermediate},
                                                                         {spec.prefix + "up_proj", spec.intermediate}},
                                                               .in = spec.hidden,
                                                               .bias = spec.bias}));
  QUIRE_ASSIGN_OR_RETURN(Linear down, load_linear(context, {.parts = {{spec.prefix + "down_proj", spec.hidden}},
                                                            .in = spec.intermediate,
                                                            .bias = spec.bias}));
  return GatedMlp(std::move(gate_up), std::move(down), spec.activation);
}

Status GatedMlp::run(const Buffers& buffers, std::int64_t num_tokens) const {
  QUIRE_RETURN_IF_ERROR(gate_up_.run(buffers.normed.rows(), num_tokens, buffers.wide.rows()));
  apply_gated(activation_, buffers.wide.rows(), num_tokens, buffers.middle.rows());
  return down_.run(buffers.middle.rows(), num_tokens, buffers.update.rows());
}

Result<PlainMlp> PlainMlp::load(const LoadContext& context, const Spec& spec) {
  QUIRE_ASSIGN_OR_RETURN(
      Linear up, load_linear(context, {.parts = {{spec.up, spec.intermediate}}, .in = spec.hidden, .bias = spec.bias}));
  QUIRE_ASSIGN_OR_RETURN(
      Linear down,
      load_linear(context, {.parts = {{spec.down, spec.hidden}}, .in = spec.intermediate, .bias = spec.bias}));
  return PlainMlp(std::move(up), std::move(down), spec.activation);
}

Status PlainMlp::run(const Buffers& buffers, std::int64_t num_tokens) const {
  QUIRE_RETURN_IF_ERROR(up_.run(buffers.normed.rows(), num_tokens, buffers.wide.rows()));
  apply_activation(activation_, buffers.wide.rows(), num_tokens, buffers.middle.rows());
  return down_.run(buffers.middle.rows(), num_tokens, buffers.update.rows());
}

}  // namespace quire
