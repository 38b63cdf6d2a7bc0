// Regex over PCRE2 in UTF mode with Unicode properties and the JIT where there is one.
#define PCRE2_CODE_UNIT_WIDTH 8
#include "io/tokenizer/regex.h"

#include <pcre2.h>

#include <algorithm>
#include <array>

namespace quire::tokenizer {
namespace {

// PCRE2's \s has one character more than White_Space (U+180E), so \s is written out.
constexpr std::string_view kSpaces =
    R"(\x09-\x0d\x20\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
constexpr std::size_t kLongestPattern = 64 * 1024;

// Replaces \s, and \S outside of classes, by explicit classes.
std::string translate(std::string_view pattern) {
  std::string out;
  int class_depth = 0;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char escaped = pattern[++i];
      if (escaped == 's') {
        out += class_depth > 0 ? std::string(kSpaces) : "[" + std::string(kSpaces) + "]";
      } else if (escaped == 'S' && class_depth == 0) {
        out += "[^" + std::string(kSpaces) + "]";
      } else {
        out += c;
        out += escaped;
      }
      continue;
    }
    if (c == '[') class_depth = class_depth > 0 ? class_depth : 1;
    if (c == ']') class_depth = 0;
    out += c;
  }
  return out;
}

std::string message_of(int code) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(code, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

struct MatchDeleter {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};

}  // namespace

struct Regex::Code {
  pcre2_code* code = nullptr;
  pcre2_match_context* context = nullptr;
  explicit Code(pcre2_code* compiled) : code(compiled), context(pcre2_match_context_create(nullptr)) {
    pcre2_set_match_limit(context, 10'000'000);
    pcre2_set_heap_limit(context, 256 * 1024);  // KiB
  }
  Code(const Code&) = delete;
  Code& operator=(const Code&) = delete;
  ~Code() {
    pcre2_match_context_free(context);
    pcre2_code_free(code);
  }
};

Result<Regex> Regex::compile(std::string_view pattern, std::string_view where) {
  if (pattern.size() > kLongestPattern) {
    return data_loss(std::string(where) + ": want a pattern of at most " + std::to_string(kLongestPattern) +
                     " bytes, got " + std::to_string(pattern.size()));
  }
  const std::string translated = translate(pattern);
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                                   PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr);
  if (code == nullptr) {
    return data_loss(std::string(where) + ": want a regular expression, got '" + std::string(pattern) + "' (" +
                     message_of(error) + ")");
  }
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // without JIT matching is slower, not different
  return Regex(std::make_shared<const Code>(code));
}

Result<std::vector<std::pair<std::size_t, std::size_t>>> Regex::find_all(std::string_view text) const {
  std::vector<std::pair<std::size_t, std::size_t>> matches;
  const std::unique_ptr<pcre2_match_data, MatchDeleter> data(
      pcre2_match_data_create_from_pattern(code_->code, nullptr));
  std::size_t offset = 0;
  while (offset < text.size()) {
    const int count = pcre2_match(code_->code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), offset,
                                  offset == 0 ? 0 : PCRE2_NO_UTF_CHECK, data.get(), code_->context);
    if (count == PCRE2_ERROR_NOMATCH) break;
    if (count < 0) return resource_exhausted("pre_tokenizer: matching the text failed: " + message_of(count));
    const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(data.get());
    if (bounds[1] > bounds[0]) matches.emplace_back(bounds[0], bounds[1]);
    const std::size_t start = offset;
    offset = std::max<std::size_t>(offset, bounds[1]);
    if (bounds[1] == bounds[0] || offset == start) {  // an empty match: go on behind the next character
      do ++offset;
      while (offset < text.size() && (static_cast<unsigned char>(text[offset]) & 0xc0) == 0x80);
    }
  }
  return matches;
}

}  // namespace quire::tokenizer
