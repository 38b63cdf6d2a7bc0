// BertEncoder: BERT's hidden states and pooled output for batches of token sequences.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "models/encoder.h"
#include "models/model.h"

namespace quire {

// Sequences one after the other: sequence i is tokens [starts[i], starts[i + 1]).
struct EncoderInput {
  std::span<const std::int32_t> tokens = {};
  std::span<const std::int32_t> token_types = {};  // as many as tokens; empty: all 0
  std::span<const std::int32_t> starts = {};       // from 0 to tokens.size()
};

class BertEncoder {
 public:
  // Loads a checkpoint whose architecture is BertModel, or one with a head on top of it that is left out.
  // options.max_tokens bounds the tokens of a call. Errors name file and key or tensor.
  static Result<std::unique_ptr<BertEncoder>> load(const Checkpoint& checkpoint, const ModelOptions& options);

  const ModelInfo& info() const { return info_; }
  // The last hidden states, float32 [tokens, hidden_size], valid until the next call. Errors: tokens or token types out
  // of range, a sequence longer than max_model_len, more tokens than max_tokens, starts that are not monotone.
  Result<std::span<const float>> forward(const EncoderInput& input);
  // tanh(W h + b) of the first token of each sequence of the last forward, float32 [sequences, hidden_size].
  // kUnsupported where the checkpoint has no pooler.
  Status pool(std::span<const std::int32_t> starts, std::span<float> pooled);

 private:
  BertEncoder(const ModelInfo& info, const ModelOptions& options) : info_(info), options_(options) {}
  Status load_parts(const LoadContext& context);
  Status check(const EncoderInput& input) const;

  ModelInfo info_;
  ModelOptions options_;
  std::int32_t num_types_ = 0;
  TensorView words_;
  TensorView types_;
  std::optional<EmbeddingSum> embedding_;
  std::optional<EncoderStack> layers_;
  std::optional<Linear> pooler_;
  RowBuffer first_tokens_;
  RowBuffer pooled_;
  std::vector<std::int64_t> positions_;
};

}  // namespace quire
