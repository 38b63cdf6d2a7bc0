// Implements EncoderStack.
#include "models/encoder.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/convert.h"

namespace quire {

Result<EmbeddingSum> EmbeddingSum::load(const LoadContext& context, const Spec& spec) {
  const std::int64_t hidden = context.info->hidden_size;
  EmbeddingSum out;
  out.offset_ = spec.offset;
  QUIRE_ASSIGN_OR_RETURN(out.positions_,
                         context.checkpoint.tensor(spec.positions, {spec.num_positions + spec.offset, hidden}));
  const Norm kind{.kind = NormKind::kLayer, .eps = spec.norm_eps};
  QUIRE_ASSIGN_OR_RETURN(out.norm_, load_norm(context, spec.norm, hidden, kind));
  return out;
}

void EmbeddingSum::run(const Rows& hidden, std::span<const std::int64_t> positions) const {
  for (std::size_t row = 0; row < positions.size(); ++row) {
    float* values = hidden.row<float>(static_cast<std::int64_t>(row));
    const std::int64_t first = (positions[row] + offset_) * hidden.width;
    for (std::int64_t i = 0; i < hidden.width; ++i) {
      values[i] += load_as_float(positions_.data, positions_.dtype, first + i);
    }
  }
  apply_norm(norm_, hidden, static_cast<std::int64_t>(positions.size()), hidden);
}

Result<EncoderStack> EncoderStack::load(const LoadContext& context, const EncoderShape& shape,
                                        std::span<const EncoderLayerNames> names) {
  AttentionOptions options = attention_options(context);
  options.kv_cache_dtype = KVCacheDType::kAuto;  // nothing is cached
  EncoderStack out(std::move(options));
  AttentionBlockSpec block;
  block.attention.num_heads = block.attention.num_kv_heads = shape.num_heads;
  block.attention.head_size = static_cast<std::int32_t>(shape.hidden / shape.num_heads);
  block.attention.scale = 1.0f / std::sqrt(static_cast<float>(block.attention.head_size));
  block.attention.type = shape.type;
  block.hidden = shape.hidden;
  block.qkv_bias = block.o_bias = HasBias::kYes;
  const Norm norm{.kind = NormKind::kLayer, .eps = shape.norm_eps};
  for (const EncoderLayerNames& name : names) {
    block.q = name.q;
    block.k = name.k;
    block.v = name.v;
    block.o = name.o;
    QUIRE_ASSIGN_OR_RETURN(AttentionBlock attention, AttentionBlock::load(context, out.attention_, block));
    QUIRE_ASSIGN_OR_RETURN(Norm attention_norm, load_norm(context, name.attention_norm, shape.hidden, norm));
    QUIRE_ASSIGN_OR_RETURN(PlainMlp mlp, PlainMlp::load(context, {.up = name.up,
                                                                  .down = name.down,
                                                                  .hidden = shape.hidden,
                                                                  .intermediate = shape.intermediate,
                                                                  .activation = shape.activation,
                                                                  .bias = HasBias::kYes}));
    QUIRE_ASSIGN_OR_RETURN(Norm mlp_norm, load_norm(context, name.mlp_norm, shape.hidden, norm));
    out.layers_.push_back({std::move(attention), std::move(attention_norm), std::move(mlp), std::move(mlp_norm)});
  }
  out.buffers_ = make_buffers({.hidden = shape.hidden,
                               .qkv = 3 * shape.hidden,
                               .heads = shape.hidden,
                               .wide = shape.intermediate,
                               .middle = shape.intermediate},
                              context.options.max_tokens, context.compute);
  QUIRE_RETURN_IF_ERROR(out.attention_.allocate(0));
  return out;
}

Status EncoderStack::begin(std::span<const std::int32_t> starts) {
  seq_lens_.clear();
  for (std::size_t i = 0; i + 1 < starts.size(); ++i) seq_lens_.push_back(starts[i + 1] - starts[i]);
  CommonAttentionMetadata common;
  common.query_start_loc_cpu = starts;
  common.seq_lens_cpu = seq_lens_;
  common.num_reqs = static_cast<std::int32_t>(seq_lens_.size());
  common.num_actual_tokens = starts.back();
  common.max_query_len = *std::max_element(seq_lens_.begin(), seq_lens_.end());
  common.max_seq_len = common.max_query_len;
  common.causal = false;
  return attention_.begin_step(common);
}

Status EncoderStack::run(std::span<const std::int32_t> starts) {
  if (starts.size() < 2 || starts.back() <= starts.front()) return {};
  QUIRE_RETURN_IF_ERROR(begin(starts));
  const std::int64_t num_tokens = starts.back();
  const Rows sum = hidden();
  convert_rows(sum, num_tokens, normed());
  for (const Layer& layer : layers_) {
    QUIRE_RETURN_IF_ERROR(layer.attention.run(attention_, buffers_, num_tokens, nullptr));
    add_rows(sum, num_tokens, buffers_.update.rows());
    apply_norm(layer.attention_norm, sum, num_tokens, sum);
    convert_rows(sum, num_tokens, normed());
    QUIRE_RETURN_IF_ERROR(layer.mlp.run(buffers_, num_tokens));
    add_rows(sum, num_tokens, buffers_.update.rows());
    apply_norm(layer.mlp_norm, sum, num_tokens, sum);
    convert_rows(sum, num_tokens, normed());
  }
  return {};
}

}  // namespace quire
