// AddedTokens: the tokens that are cut out of the text before the model sees it.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "io/tokenizer/normalizer.h"

namespace quire::tokenizer {

struct AddedToken {
  std::int32_t id = 0;
  std::string content;
  bool special = false;
  bool single_word = false;  // only between characters that make no word
  bool lstrip = false;       // swallows white space before it
  bool rstrip = false;       // and behind it
  bool normalized = false;   // looked for in the normalised text
};

// A part of a text: an added token (id >= 0) or text between them.
struct TextPart {
  std::string_view text;
  std::int32_t id = -1;
};

class AddedTokens {
 public:
  // From the file's "added_tokens" (may be missing).
  static Result<AddedTokens> from_json(const Json& file, const Normalizer& normalizer);

  // Cuts the tokens looked for in raw text (or in normalised text) out of `text`; leftmost, then longest.
  std::vector<TextPart> split(std::string_view text, bool in_normalized_text) const;
  const AddedToken* find(std::int32_t id) const;
  const std::vector<AddedToken>& tokens() const { return tokens_; }

 private:
  struct Pattern {
    std::string text;
    std::size_t token = 0;
  };
  // Patterns by first byte, longest first.
  using Patterns = std::array<std::vector<Pattern>, 256>;

  const Pattern* longest_at(const Patterns& patterns, std::string_view text) const;

  std::vector<AddedToken> tokens_;
  std::unordered_map<std::int32_t, std::size_t> by_id_;
  Patterns raw_;
  Patterns normalized_;
};

}  // namespace quire::tokenizer
