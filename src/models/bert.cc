// Implements BertEncoder.
#include "models/bert.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>

#include "core/convert.h"
#include "models/family.h"

namespace quire {
namespace {

EncoderLayerNames layer_names(std::int32_t index) {
  const std::string prefix = "encoder.layer." + std::to_string(index) + ".";
  return {.q = prefix + "attention.self.query",
          .k = prefix + "attention.self.key",
          .v = prefix + "attention.self.value",
          .o = prefix + "attention.output.dense",
          .attention_norm = prefix + "attention.output.LayerNorm",
          .up = prefix + "intermediate.dense",
          .down = prefix + "output.dense",
          .mlp_norm = prefix + "output.LayerNorm"};
}

Result<EncoderShape> read_bert_shape(const HfConfig& config, std::int32_t hidden) {
  EncoderShape shape{.hidden = hidden};
  QUIRE_ASSIGN_OR_RETURN(shape.intermediate, config.count("intermediate_size"));
  QUIRE_ASSIGN_OR_RETURN(shape.num_heads, config.count("num_attention_heads"));
  QUIRE_ASSIGN_OR_RETURN(shape.activation, read_activation(config, "hidden_act", "gelu"));
  QUIRE_ASSIGN_OR_RETURN(const double eps, config.number_or("layer_norm_eps", 1e-12));
  shape.norm_eps = static_cast<float>(eps);
  if (hidden % shape.num_heads != 0) {
    return data_loss(config.path() + ": key 'num_attention_heads': want a divisor of " + std::to_string(hidden) +
                     ", got " + std::to_string(shape.num_heads));
  }
  QUIRE_RETURN_IF_ERROR(config.expect_text("position_embedding_type", "absolute"));
  QUIRE_RETURN_IF_ERROR(config.expect_flag("is_decoder", false));
  QUIRE_RETURN_IF_ERROR(config.expect_flag("add_cross_attention", false));
  return shape;
}

Result<DType> choose_compute(const ModelOptions& options) {
  const DType wanted = options.dtype.value_or(DType::kFloat32);
  if (wanted == DType::kFloat32 || wanted == DType::kBFloat16) return wanted;
  return invalid_argument("dtype: want float32 or bfloat16, got " + std::string(dtype_name(wanted)));
}

Result<ModelInfo> read_info(const Checkpoint& checkpoint) {
  const HfConfig& config = checkpoint.config();
  ModelInfo info;
  QUIRE_ASSIGN_OR_RETURN(info.architecture, checkpoint.architecture());
  if (!info.architecture.starts_with("Bert")) {
    return unsupported(config.path() + ": key 'architectures': want BertModel, got " + info.architecture);
  }
  QUIRE_ASSIGN_OR_RETURN(info.vocab_size, config.count("vocab_size"));
  QUIRE_ASSIGN_OR_RETURN(info.hidden_size, config.count("hidden_size"));
  QUIRE_ASSIGN_OR_RETURN(info.num_layers, config.count("num_hidden_layers"));
  QUIRE_ASSIGN_OR_RETURN(info.max_model_len, config.count("max_position_embeddings"));
  return info;
}

// Of the encoder nothing depends on these.
constexpr std::array<std::string_view, 2> kBertHarmlessKeys = {"tie_word_embeddings", "type_vocab_size"};
// Heads on top of the encoder.
constexpr std::array<std::string_view, 13> kHeadTensors = {"position_ids",
                                                           "cls.predictions.bias",
                                                           "cls.predictions.decoder.bias",
                                                           "cls.predictions.decoder.weight",
                                                           "cls.predictions.transform.LayerNorm.bias",
                                                           "cls.predictions.transform.LayerNorm.weight",
                                                           "cls.predictions.transform.dense.bias",
                                                           "cls.predictions.transform.dense.weight",
                                                           "cls.seq_relationship.bias",
                                                           "cls.seq_relationship.weight",
                                                           "classifier.bias",
                                                           "classifier.weight",
                                                           "qa_outputs.weight"};

}  // namespace

Result<std::unique_ptr<BertEncoder>> BertEncoder::load(const Checkpoint& checkpoint, const ModelOptions& options) {
  QUIRE_ASSIGN_OR_RETURN(ModelInfo info, read_info(checkpoint));
  LoadContext context{.checkpoint = checkpoint, .options = options, .info = &info};
  QUIRE_ASSIGN_OR_RETURN(context.compute, choose_compute(options));
  info.dtype = context.compute;
  std::unique_ptr<BertEncoder> out(new BertEncoder(info, options));
  QUIRE_RETURN_IF_ERROR(out->load_parts(context));
  QUIRE_RETURN_IF_ERROR(checkpoint.config().check_all_read(kBertHarmlessKeys));
  QUIRE_RETURN_IF_ERROR(checkpoint.check_all_used(kHeadTensors));
  out->info_ = info;
  return out;
}

Status BertEncoder::load_parts(const LoadContext& context) {
  const HfConfig& config = context.config();
  const std::int32_t hidden = info_.hidden_size;
  QUIRE_ASSIGN_OR_RETURN(const EncoderShape shape, read_bert_shape(config, hidden));
  QUIRE_ASSIGN_OR_RETURN(num_types_, config.count_or("type_vocab_size", 2));
  QUIRE_ASSIGN_OR_RETURN(words_,
                         context.checkpoint.tensor("embeddings.word_embeddings.weight", {info_.vocab_size, hidden}));
  QUIRE_ASSIGN_OR_RETURN(types_,
                         context.checkpoint.tensor("embeddings.token_type_embeddings.weight", {num_types_, hidden}));
  QUIRE_ASSIGN_OR_RETURN(embedding_, EmbeddingSum::load(context, {.positions = "embeddings.position_embeddings.weight",
                                                                  .num_positions = info_.max_model_len,
                                                                  .norm = "embeddings.LayerNorm",
                                                                  .norm_eps = shape.norm_eps}));
  std::vector<EncoderLayerNames> names;
  for (std::int32_t i = 0; i < info_.num_layers; ++i) names.push_back(layer_names(i));
  QUIRE_ASSIGN_OR_RETURN(layers_, EncoderStack::load(context, shape, names));
  if (!context.checkpoint.contains("pooler.dense.weight")) return {};
  QUIRE_ASSIGN_OR_RETURN(
      pooler_, load_linear(context, {.parts = {{"pooler.dense", hidden}}, .in = hidden, .bias = HasBias::kYes}));
  first_tokens_ = RowBuffer(kRowPadding, hidden, context.compute);
  pooled_ = RowBuffer(kRowPadding, hidden, DType::kFloat32);
  return {};
}

Status BertEncoder::check(const EncoderInput& input) const {
  const auto num_tokens = static_cast<std::int64_t>(input.tokens.size());
  if (num_tokens > options_.max_tokens) {
    return out_of_range("tokens: want at most " + std::to_string(options_.max_tokens) + " in a call, got " +
                        std::to_string(num_tokens));
  }
  if (input.starts.size() < 2 || input.starts.front() != 0 || input.starts.back() != num_tokens) {
    return invalid_argument("starts: want numbers from 0 to " + std::to_string(num_tokens));
  }
  for (std::size_t i = 0; i + 1 < input.starts.size(); ++i) {
    const std::int64_t length = std::int64_t{input.starts[i + 1]} - input.starts[i];
    if (length >= 1 && length <= info_.max_model_len) continue;
    return out_of_range("sequence " + std::to_string(i) + ": want 1 to " + std::to_string(info_.max_model_len) +
                        " tokens, got " + std::to_string(length));
  }
  for (const std::int32_t token : input.tokens) {
    if (token >= 0 && token < info_.vocab_size) continue;
    return out_of_range("tokens: want [0, " + std::to_string(info_.vocab_size) + "), got " + std::to_string(token));
  }
  if (!input.token_types.empty() && input.token_types.size() != input.tokens.size()) {
    return invalid_argument("token_types: want " + std::to_string(num_tokens) + ", got " +
                            std::to_string(input.token_types.size()));
  }
  for (const std::int32_t type : input.token_types) {
    if (type >= 0 && type < num_types_) continue;
    return out_of_range("token_types: want [0, " + std::to_string(num_types_) + "), got " + std::to_string(type));
  }
  return {};
}

Result<std::span<const float>> BertEncoder::forward(const EncoderInput& input) {
  QUIRE_RETURN_IF_ERROR(check(input));
  const Rows hidden = layers_->hidden();
  embed_rows(words_, input.tokens, 1.0f, hidden);
  for (std::size_t row = 0; row < input.tokens.size(); ++row) {
    const std::int64_t type = input.token_types.empty() ? 0 : input.token_types[row];
    float* values = hidden.row<float>(static_cast<std::int64_t>(row));
    for (std::int64_t i = 0; i < hidden.width; ++i) {
      values[i] += load_as_float(types_.data, types_.dtype, type * hidden.width + i);
    }
  }
  positions_.clear();
  for (std::size_t i = 0; i + 1 < input.starts.size(); ++i) {
    for (std::int64_t position = 0; position < input.starts[i + 1] - input.starts[i]; ++position) {
      positions_.push_back(position);
    }
  }
  embedding_->run(hidden, positions_);
  QUIRE_RETURN_IF_ERROR(layers_->run(input.starts));
  return std::span<const float>(hidden.row<float>(0), input.tokens.size() * static_cast<std::size_t>(hidden.width));
}

Status BertEncoder::pool(std::span<const std::int32_t> starts, std::span<float> pooled) {
  const auto width = static_cast<std::size_t>(info_.hidden_size);
  const std::size_t num_seqs = starts.empty() ? 0 : starts.size() - 1;
  if (!pooler_) return unsupported("pool: want a checkpoint with 'pooler.dense.weight', got one without");
  if (pooled.size() < num_seqs * width) {
    return invalid_argument("pooled: want " + std::to_string(num_seqs * width) + " values, got " +
                            std::to_string(pooled.size()));
  }
  const Rows first = first_tokens_.rows();
  const auto row_bytes = static_cast<std::size_t>(first.width * dtype_bytes(first.dtype));
  for (std::size_t done = 0; done < num_seqs; done += kRowPadding) {
    const std::size_t count = std::min<std::size_t>(kRowPadding, num_seqs - done);
    for (std::size_t i = 0; i < count; ++i) {
      const Rows from = layers_->normed().from(starts[done + i]);
      std::memcpy(first.from(static_cast<std::int64_t>(i)).data, from.data, row_bytes);
    }
    QUIRE_RETURN_IF_ERROR(pooler_->run(first, static_cast<std::int64_t>(count), pooled_.rows()));
    const float* values = pooled_.floats();
    for (std::size_t i = 0; i < count * width; ++i) pooled[done * width + i] = std::tanh(values[i]);
  }
  return {};
}

}  // namespace quire
