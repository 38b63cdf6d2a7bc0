// SentenceEncoder: one vector a text, as a folder of sentence-transformers describes it (modules.json): a BERT encoder,
// pooling over its tokens and, where the folder says so, a vector of length 1.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/tokenizer/tokenizer.h"
#include "models/bert.h"
#include "models/checkpoint.h"

namespace quire {

class SentenceEncoder {
 public:
  // Reads modules.json, the transformer's config.json, model.safetensors and sentence_bert_config.json, and the
  // pooling's config.json; a folder without modules.json is a transformer whose tokens are averaged and normalised.
  // options.max_tokens bounds the tokens of one pass and is at least a text's limit. Errors name file and key;
  // kUnsupported for modules other than Transformer, Pooling (mean or [CLS]) and Normalize.
  static Result<std::unique_ptr<SentenceEncoder>> load(const std::string& folder, const ModelOptions& options);

  BertEncoder& bert() { return *bert_; }
  // The file that belongs to the transformer.
  std::string tokenizer_path() const;
  // Of a vector.
  std::int32_t width() const { return bert_->info().hidden_size; }
  // Tokens of a text, the special ones included, beyond which it is cut.
  std::int32_t max_seq_length() const { return max_seq_length_; }
  // [texts, width], in the texts' order. Errors: a text without tokens or with more than max_seq_length, a token
  // outside the vocabulary.
  Result<std::vector<float>> embed(std::span<const std::vector<std::int32_t>> texts);

 private:
  enum class Pooling : std::uint8_t { kMean, kFirstToken };
  SentenceEncoder() = default;
  Result<std::string> load_modules(const std::string& folder);
  Status check_limits() const;
  Status load_pooling(const std::string& path);
  Status load_limits(const std::string& path);
  Status embed_batch(std::span<const std::vector<std::int32_t>> texts, float* out);
  void pool(std::span<const float> hidden, float* out) const;

  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<BertEncoder> bert_;
  std::int64_t max_tokens_ = 0;
  std::int32_t max_seq_length_ = 0;
  std::int32_t pooled_width_ = 0;  // what the pooling says; 0: nothing
  Pooling pooling_ = Pooling::kMean;
  bool normalize_ = false;
};

// The ids of a text, at most `limit`: behind that its own tokens are cut off, the special tokens around them stay.
Result<std::vector<std::int32_t>> tokenize_cut(const Tokenizer& tokenizer, std::string_view text, std::int32_t limit);

}  // namespace quire
