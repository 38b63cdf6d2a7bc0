// The normalizers of tokenizer.json that decoder and encoder models use.
#include "io/tokenizer/normalizer.h"

#include <optional>
#include <utility>
#include <vector>

#include "io/tokenizer/regex.h"
#include "io/tokenizer/unicode.h"

namespace quire::tokenizer {
namespace {

constexpr int kDeepestNormalizer = 8;

std::string strip_accents(std::string_view text) {
  std::string out;
  for (std::size_t offset = 0; offset < text.size();) {
    const char32_t c = next_char(text, offset);
    if (!is_mark_nonspacing(c)) append_utf8(out, c);
  }
  return out;
}

struct BertOptions {
  bool clean_text = true;
  bool handle_chinese_chars = true;
  bool strip_accents = true;
  bool lowercase = true;
};

std::string bert_clean(std::string_view text, const BertOptions& options) {
  std::string out;
  for (std::size_t offset = 0; offset < text.size();) {
    const char32_t c = next_char(text, offset);
    const bool is_plain_space = c == '\t' || c == '\n' || c == '\r';
    if (options.clean_text && !is_plain_space && (c == 0 || c == kReplacement || is_control(c))) continue;
    if (options.clean_text && is_whitespace(c)) {
      out += ' ';
    } else if (options.handle_chinese_chars && is_cjk(c)) {
      out += ' ';
      append_utf8(out, c);
      out += ' ';
    } else {
      append_utf8(out, c);
    }
  }
  return out;
}

Result<Normalizer> make_bert(const Json& json, std::string_view where) {
  BertOptions options;
  QUIRE_ASSIGN_OR_RETURN(options.clean_text, bool_field(json, "clean_text", true, where));
  QUIRE_ASSIGN_OR_RETURN(options.handle_chinese_chars, bool_field(json, "handle_chinese_chars", true, where));
  QUIRE_ASSIGN_OR_RETURN(options.lowercase, bool_field(json, "lowercase", true, where));
  QUIRE_ASSIGN_OR_RETURN(options.strip_accents, bool_field(json, "strip_accents", options.lowercase, where));
  return Normalizer([options](std::string_view text) -> Result<std::string> {
    std::string out = bert_clean(text, options);
    if (options.strip_accents) out = strip_accents(normalize(out, NormalForm::kNfd));
    return options.lowercase ? to_lower(out) : out;
  });
}

Result<Normalizer> make_normalizer_sequence(const Json& json, std::string_view where, Growth& growth, int depth) {
  const auto parts = json.find("normalizers");
  if (parts == json.end() || !parts->is_array()) return data_loss(std::string(where) + ".normalizers: want an array");
  std::vector<Normalizer> steps;
  for (const Json& part : *parts) {
    QUIRE_ASSIGN_OR_RETURN(Normalizer step,
                           make_normalizer(part, std::string(where) + ".normalizers", growth, depth + 1));
    steps.push_back(std::move(step));
  }
  return Normalizer([steps = std::move(steps)](std::string_view text) -> Result<std::string> {
    std::string out(text);
    for (const Normalizer& step : steps) {
      QUIRE_ASSIGN_OR_RETURN(out, step(out));
    }
    return out;
  });
}

Result<Normalizer> make_replace(const Json& json, std::string_view where, Growth& growth) {
  QUIRE_ASSIGN_OR_RETURN(const PatternField pattern, pattern_field(json, where));
  QUIRE_ASSIGN_OR_RETURN(const std::string content, string_field(json, "content", "", where));
  const std::size_t shortest = pattern.is_regex ? 1 : pattern.text.size();
  QUIRE_RETURN_IF_ERROR(growth.add_replacement(shortest, content, where));
  if (!pattern.is_regex) {
    return Normalizer([pattern, content](std::string_view text) -> Result<std::string> {
      return replace_all(text, pattern.text, content);
    });
  }
  QUIRE_ASSIGN_OR_RETURN(const Regex regex, Regex::compile(pattern.text, std::string(where) + ".pattern"));
  return Normalizer([regex, content](std::string_view text) -> Result<std::string> {
    QUIRE_ASSIGN_OR_RETURN(const auto matches, regex.find_all(text));
    std::string out;
    std::size_t offset = 0;
    for (const auto& [begin, end] : matches) {
      out.append(text.substr(offset, begin - offset)).append(content);
      offset = end;
    }
    return out.append(text.substr(offset));
  });
}

Result<Normalizer> make_strip_normalizer(const Json& json, std::string_view where) {
  QUIRE_ASSIGN_OR_RETURN(const bool left, bool_field(json, "strip_left", true, where));
  QUIRE_ASSIGN_OR_RETURN(const bool right, bool_field(json, "strip_right", true, where));
  return Normalizer([left, right](std::string_view text) -> Result<std::string> {
    std::size_t begin = text.size();
    std::size_t end = 0;
    for (std::size_t offset = 0; offset < text.size();) {
      const std::size_t start = offset;
      if (is_whitespace(next_char(text, offset))) continue;
      begin = std::min(begin, start);
      end = offset;
    }
    begin = left ? begin : 0;
    end = right ? end : text.size();
    return begin < end ? std::string(text.substr(begin, end - begin)) : std::string();
  });
}

std::optional<NormalForm> normal_form(const std::string& type) {
  if (type == "NFC") return NormalForm::kNfc;
  if (type == "NFD") return NormalForm::kNfd;
  if (type == "NFKC") return NormalForm::kNfkc;
  if (type == "NFKD") return NormalForm::kNfkd;
  return std::nullopt;
}

}  // namespace

Result<Normalizer> make_normalizer(const Json& json, std::string_view where, Growth& growth, int depth) {
  if (json.is_null()) return Normalizer([](std::string_view text) -> Result<std::string> { return std::string(text); });
  if (depth > kDeepestNormalizer)
    return data_loss(std::string(where) + ": want at most " + std::to_string(kDeepestNormalizer) + " nested sequences");
  QUIRE_ASSIGN_OR_RETURN(const std::string type, type_of(json, where));
  if (const auto form = normal_form(type)) {
    const bool compatible = *form == NormalForm::kNfkc || *form == NormalForm::kNfkd;
    QUIRE_RETURN_IF_ERROR(growth.add(compatible ? 11.0 : 3.0, where));
    return Normalizer([form = *form](std::string_view text) -> Result<std::string> { return normalize(text, form); });
  }
  if (type == "Sequence") return make_normalizer_sequence(json, where, growth, depth);
  if (type == "BertNormalizer") {
    QUIRE_RETURN_IF_ERROR(growth.add(3.0, where));
    return make_bert(json, where);
  }
  if (type == "Replace") return make_replace(json, where, growth);
  if (type == "Strip") return make_strip_normalizer(json, where);
  if (type == "Lowercase") {
    QUIRE_RETURN_IF_ERROR(growth.add(1.5, where));
    return Normalizer([](std::string_view text) -> Result<std::string> { return to_lower(text); });
  }
  if (type == "StripAccents") {
    return Normalizer([](std::string_view text) -> Result<std::string> { return strip_accents(text); });
  }
  if (type == "Prepend") {
    QUIRE_ASSIGN_OR_RETURN(const std::string prefix, string_field(json, "prepend", "", where));
    return Normalizer([prefix](std::string_view text) -> Result<std::string> {
      return text.empty() ? std::string() : prefix + std::string(text);
    });
  }
  return unsupported(std::string(where) +
                     ".type: want Sequence, NFC, NFD, NFKC, NFKD, BertNormalizer, Replace, Strip, "
                     "Lowercase, StripAccents or Prepend, got '" +
                     type + "'");
}

}  // namespace quire::tokenizer
