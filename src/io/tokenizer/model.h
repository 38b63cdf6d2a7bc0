// Model: turns one piece of text into token ids, by byte pair merges or by WordPiece.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "io/tokenizer/json_fields.h"

namespace quire::tokenizer {

struct StringHash {
  using is_transparent = void;
  std::size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
};
using Vocabulary = std::unordered_map<std::string, std::int32_t, StringHash, std::equal_to<>>;

class Model {
 public:
  virtual ~Model() = default;
  // Appends the ids of one piece.
  virtual void tokenize(std::string_view piece, std::vector<std::int32_t>& ids) const = 0;
  const Vocabulary& vocabulary() const { return vocabulary_; }

 protected:
  explicit Model(Vocabulary vocabulary) : vocabulary_(std::move(vocabulary)) {}
  Vocabulary vocabulary_;
};

// From the file's "model". Unknown types and options that change results and are not done are kUnsupported.
Result<std::unique_ptr<Model>> make_model(const Json& json, std::string_view where);
Result<std::unique_ptr<Model>> make_bpe(const Json& json, Vocabulary vocabulary, std::string_view where);
Result<std::unique_ptr<Model>> make_word_piece(const Json& json, Vocabulary vocabulary, std::string_view where);

}  // namespace quire::tokenizer
