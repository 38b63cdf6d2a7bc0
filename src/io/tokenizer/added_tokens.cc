// Reading and finding of added tokens.
#include "io/tokenizer/added_tokens.h"

#include <algorithm>

#include "io/tokenizer/unicode.h"

namespace quire::tokenizer {
namespace {

Result<AddedToken> read_token(const Json& json, const std::string& where) {
  if (!json.is_object()) return wrong_field(where, "an object", json);
  AddedToken token;
  QUIRE_ASSIGN_OR_RETURN(const std::int64_t id, integer_field(json, "id", -1, where));
  if (id < 0 || id > (1 << 24)) return data_loss(where + ".id: want an id in [0, 2^24], got " + std::to_string(id));
  token.id = static_cast<std::int32_t>(id);
  QUIRE_ASSIGN_OR_RETURN(token.content, string_field(json, "content", "", where));
  QUIRE_ASSIGN_OR_RETURN(token.special, bool_field(json, "special", false, where));
  QUIRE_ASSIGN_OR_RETURN(token.single_word, bool_field(json, "single_word", false, where));
  QUIRE_ASSIGN_OR_RETURN(token.lstrip, bool_field(json, "lstrip", false, where));
  QUIRE_ASSIGN_OR_RETURN(token.rstrip, bool_field(json, "rstrip", false, where));
  QUIRE_ASSIGN_OR_RETURN(token.normalized, bool_field(json, "normalized", !token.special, where));
  return token;
}

bool ends_with_word(std::string_view text) {
  std::size_t begin = text.size();
  while (begin > 0 && (static_cast<unsigned char>(text[begin - 1]) & 0xc0) == 0x80) --begin;
  if (begin == 0) return false;
  --begin;
  return is_word(next_char(text, begin));
}

bool starts_with_word(std::string_view text) {
  std::size_t offset = 0;
  return !text.empty() && is_word(next_char(text, offset));
}

// Bytes of white space at the end of `text`.
std::size_t trailing_space(std::string_view text) {
  std::size_t begin = 0;
  for (std::size_t offset = 0; offset < text.size();) {
    if (!is_whitespace(next_char(text, offset))) begin = offset;
  }
  return text.size() - begin;
}

std::size_t leading_space(std::string_view text) {
  std::size_t end = 0;
  for (std::size_t offset = 0; offset < text.size() && is_whitespace(next_char(text, offset));) end = offset;
  return end;
}

}  // namespace

Result<AddedTokens> AddedTokens::from_json(const Json& file, const Normalizer& normalizer) {
  AddedTokens added;
  const auto found = file.find("added_tokens");
  if (found == file.end() || found->is_null()) return added;
  if (!found->is_array()) return wrong_field("added_tokens", "an array", *found);
  for (const Json& entry : *found) {
    const std::string where = "added_tokens[" + std::to_string(added.tokens_.size()) + "]";
    QUIRE_ASSIGN_OR_RETURN(AddedToken token, read_token(entry, where));
    std::string pattern = token.content;
    if (token.normalized) {
      QUIRE_ASSIGN_OR_RETURN(pattern, normalizer(token.content));
    }
    const std::size_t index = added.tokens_.size();
    if (!pattern.empty()) {
      Patterns& patterns = token.normalized ? added.normalized_ : added.raw_;
      patterns[static_cast<unsigned char>(pattern[0])].push_back({pattern, index});
    }
    added.by_id_[token.id] = index;
    added.tokens_.push_back(std::move(token));
  }
  for (Patterns* patterns : {&added.raw_, &added.normalized_}) {
    for (auto& bucket : *patterns) {
      std::stable_sort(bucket.begin(), bucket.end(),
                       [](const Pattern& a, const Pattern& b) { return a.text.size() > b.text.size(); });
    }
  }
  return added;
}

const AddedToken* AddedTokens::find(std::int32_t id) const {
  const auto found = by_id_.find(id);
  return found == by_id_.end() ? nullptr : &tokens_[found->second];
}

const AddedTokens::Pattern* AddedTokens::longest_at(const Patterns& patterns, std::string_view text) const {
  for (const Pattern& pattern : patterns[static_cast<unsigned char>(text[0])]) {
    if (text.starts_with(pattern.text)) return &pattern;
  }
  return nullptr;
}

std::vector<TextPart> AddedTokens::split(std::string_view text, bool in_normalized_text) const {
  const Patterns& patterns = in_normalized_text ? normalized_ : raw_;
  std::vector<TextPart> parts;
  std::size_t plain = 0;  // start of the text that no token has taken yet
  for (std::size_t offset = 0; offset < text.size();) {
    const Pattern* pattern = longest_at(patterns, text.substr(offset));
    if (pattern == nullptr) {
      ++offset;
      continue;
    }
    const AddedToken& token = tokens_[pattern->token];
    std::size_t begin = offset;
    std::size_t end = offset + pattern->text.size();
    offset = end;
    if (token.single_word && (ends_with_word(text.substr(0, begin)) || starts_with_word(text.substr(end)))) continue;
    if (token.lstrip) begin = std::max(plain, begin - trailing_space(text.substr(0, begin)));
    if (token.rstrip) end += leading_space(text.substr(end));
    if (plain < begin) parts.push_back({text.substr(plain, begin - plain)});
    parts.push_back({text.substr(begin, end - begin), token.id});
    plain = offset = end;
  }
  if (plain < text.size()) parts.push_back({text.substr(plain)});
  return parts;
}

}  // namespace quire::tokenizer
