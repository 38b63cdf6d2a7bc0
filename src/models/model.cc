// The parts of a decoder that no family changes: loading of layers, embedding, final norm and head.
#include "models/model.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace quire {

Result<Linear> load_linear(const LoadContext& context, const LinearSpec& spec) {
  LinearWeights weights;
  weights.outputs = spec.outputs;
  for (const LinearName& part : spec.parts) {
    QUIRE_ASSIGN_OR_RETURN(const TensorView weight,
                           context.checkpoint.tensor(part.name + ".weight", {part.out, spec.in}));
    weights.parts.push_back(weight);
    if (spec.bias == HasBias::kNo) continue;
    QUIRE_ASSIGN_OR_RETURN(const std::vector<float> bias, context.checkpoint.floats(part.name + ".bias", {part.out}));
    weights.bias.insert(weights.bias.end(), bias.begin(), bias.end());
  }
  QUIRE_ASSIGN_OR_RETURN(Linear linear, Linear::create(weights, context.compute, context.options.tiling));
  context.info->weight_bytes += linear.weight_bytes();
  return linear;
}

Result<Norm> load_norm(const LoadContext& context, const std::string& name, std::int64_t width, Norm kind) {
  QUIRE_ASSIGN_OR_RETURN(kind.weight, context.checkpoint.floats(name + ".weight", {width}));
  for (float& weight : kind.weight) weight += kind.weight_shift;
  if (kind.kind == NormKind::kLayer && context.checkpoint.contains(name + ".bias")) {
    QUIRE_ASSIGN_OR_RETURN(kind.bias, context.checkpoint.floats(name + ".bias", {width}));
  }
  return kind;
}

Buffers make_buffers(const BufferWidths& widths, std::int64_t rows, DType compute) {
  Buffers out;
  out.hidden = RowBuffer(rows, widths.hidden, DType::kFloat32);
  out.normed = RowBuffer(rows, widths.hidden, compute);
  out.qkv = RowBuffer(rows, widths.qkv, compute);
  out.heads = RowBuffer(rows, widths.heads, compute);
  out.update = RowBuffer(rows, widths.hidden, DType::kFloat32);
  out.wide = RowBuffer(rows, widths.wide, DType::kFloat32);
  out.middle = RowBuffer(rows, widths.middle, compute);
  return out;
}

AttentionOptions attention_options(const LoadContext& context, std::string_view preferred_backend) {
  const ModelOptions& options = context.options;
  return {.backend = options.backend.empty() ? std::string(preferred_backend) : options.backend,
          .dtype = context.compute,
          .kv_cache_dtype = options.kv_cache_dtype,
          .block_size = options.block_size,
          .runtime = options.runtime};
}

Status DecoderModel::load_ends(const LoadContext& context, const Ends& ends) {
  const std::int64_t vocab = info_.vocab_size;
  const std::int64_t hidden = info_.hidden_size;
  const Checkpoint& checkpoint = context.checkpoint;
  QUIRE_ASSIGN_OR_RETURN(embedding_, checkpoint.tensor(ends.embedding, {vocab, hidden}));
  embedding_scale_ = ends.embedding_scale;
  if (!ends.final_norm.empty()) {
    QUIRE_ASSIGN_OR_RETURN(final_norm_, load_norm(context, ends.final_norm, hidden, ends.norm));
  }
  LinearWeights weights;
  QUIRE_ASSIGN_OR_RETURN(const TensorView head,
                         checkpoint.tensor(ends.head.empty() ? ends.embedding : ends.head, {vocab, hidden}));
  weights.parts.push_back(head);
  if (ends.head_bias == HasBias::kYes) {
    QUIRE_ASSIGN_OR_RETURN(weights.bias, checkpoint.floats("final_logits_bias", {1, vocab}));
  }
  QUIRE_ASSIGN_OR_RETURN(Linear linear, Linear::create(weights, context.compute, context.options.tiling));
  info_.weight_bytes = context.info->weight_bytes + linear.weight_bytes();
  head_ = std::make_unique<Linear>(std::move(linear));
  output_hidden_ = RowBuffer(options_.max_outputs, hidden, DType::kFloat32);
  output_normed_ = RowBuffer(options_.max_outputs, hidden, context.compute);
  logits_ = RowBuffer(options_.max_outputs, vocab, DType::kFloat32);
  return {};
}

Status DecoderModel::forward(const StepInput& step, std::span<float> logits) {
  const auto num_tokens = static_cast<std::int64_t>(step.tokens.size());
  const auto num_outputs = static_cast<std::int64_t>(step.outputs.size());
  const auto vocab = static_cast<std::size_t>(info_.vocab_size);
  if (num_tokens > options_.max_tokens || num_outputs > options_.max_outputs ||
      step.positions.size() != step.tokens.size() || logits.size() < step.outputs.size() * vocab) {
    return internal_error("step: want at most " + std::to_string(options_.max_tokens) + " tokens and " +
                          std::to_string(options_.max_outputs) + " outputs, got " + std::to_string(num_tokens) +
                          " and " + std::to_string(num_outputs));
  }
  for (const std::int32_t token : step.tokens) {
    if (token >= 0 && token < info_.vocab_size) continue;
    return out_of_range("tokens: want [0, " + std::to_string(info_.vocab_size) + "), got " + std::to_string(token));
  }
  for (const std::int64_t position : step.positions) {
    if (position >= 0 && position < info_.max_model_len) continue;
    return out_of_range("positions: want [0, " + std::to_string(info_.max_model_len) + "), got " +
                        std::to_string(position));
  }
  const Rows hidden = buffers_.hidden.rows();
  embed_rows(embedding_, step.tokens, embedding_scale_, hidden);
  QUIRE_RETURN_IF_ERROR(after_embedding(step));
  for (std::int32_t layer = 0; layer < info_.num_layers; ++layer) QUIRE_RETURN_IF_ERROR(run_layer(layer, num_tokens));
  if (num_outputs == 0) return {};

  const Rows gathered = output_hidden_.rows();
  for (std::int64_t i = 0; i < num_outputs; ++i) {
    const float* from = hidden.row<float>(step.outputs[static_cast<std::size_t>(i)]);
    std::copy(from, from + hidden.width, gathered.row<float>(i));
  }
  if (final_norm_) {
    apply_norm(*final_norm_, gathered, num_outputs, output_normed_.rows());
  } else {
    convert_rows(gathered, num_outputs, output_normed_.rows());
  }
  QUIRE_RETURN_IF_ERROR(head_->run(output_normed_.rows(), num_outputs, logits_.rows()));
  finish_logits(logits_.rows(), num_outputs);
  std::memcpy(logits.data(), logits_.floats(), step.outputs.size() * vocab * sizeof(float));
  return {};
}

Status DecoderModel::encode(std::span<const std::int32_t> tokens, std::span<const std::int64_t> slots) {
  static_cast<void>(tokens);
  static_cast<void>(slots);
  return unsupported("encode: want an encoder-decoder model, got " + info_.architecture);
}

}  // namespace quire
