// Implements Embedder on the sentence encoder.
#include <algorithm>
#include <array>
#include <utility>

#include "models/sentence_encoder.h"
#include "quire/engine.h"
#include "quire/runtime.h"

namespace quire {

class Embedder::State {
 public:
  explicit State(std::unique_ptr<SentenceEncoder> own) : encoder(std::move(own)) {}
  std::unique_ptr<SentenceEncoder> encoder;
};

Embedder::Embedder(std::unique_ptr<State> state) : state_(std::move(state)) {}
Embedder::~Embedder() = default;

Result<std::unique_ptr<Embedder>> Embedder::create(const EmbedderOptions& options) {
  ModelOptions model;
  model.backend = options.backend;
  model.dtype = options.dtype;
  model.tiling = options.batch_invariance == BatchInvariance::kOn ? RowTiling::kFixed : RowTiling::kByCount;
  model.max_tokens = options.max_num_batched_tokens;
  if (options.max_num_batched_tokens < 1) {
    return invalid_argument("max_num_batched_tokens: want at least 1, got " +
                            std::to_string(options.max_num_batched_tokens));
  }
  if (options.runtime) {
    model.runtime = *options.runtime;
  } else {
    QUIRE_ASSIGN_OR_RETURN(model.runtime, default_runtime());
  }
  QUIRE_ASSIGN_OR_RETURN(std::unique_ptr<SentenceEncoder> encoder, SentenceEncoder::load(options.model, model));
  return std::unique_ptr<Embedder>(new Embedder(std::make_unique<State>(std::move(encoder))));
}

std::int32_t Embedder::hidden_size() const { return state_->encoder->width(); }
std::int32_t Embedder::vocab_size() const { return state_->encoder->bert().info().vocab_size; }
std::int32_t Embedder::max_tokens() const { return state_->encoder->max_seq_length(); }

Result<std::vector<float>> Embedder::embed(std::span<const std::vector<std::int32_t>> texts) {
  return state_->encoder->embed(texts);
}

Result<std::vector<float>> Embedder::hidden_states(std::span<const std::int32_t> tokens) {
  const std::array starts = {0, static_cast<std::int32_t>(tokens.size())};
  QUIRE_ASSIGN_OR_RETURN(const std::span<const float> hidden,
                         state_->encoder->bert().forward({.tokens = tokens, .starts = starts}));
  return std::vector<float>(hidden.begin(), hidden.end());
}

}  // namespace quire
