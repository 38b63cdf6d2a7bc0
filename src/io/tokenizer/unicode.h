// Unicode as tokenizers need it: UTF-8 in and out, categories and normal forms (by utf8proc).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace quire::tokenizer {

inline constexpr char32_t kReplacement = 0xfffd;

// Decodes the character at `offset` and moves behind it. An invalid byte gives U+FFFD and moves by one.
char32_t next_char(std::string_view text, std::size_t& offset);
void append_utf8(std::string& text, char32_t c);
// The text with every invalid byte sequence replaced by U+FFFD (one for each maximal invalid part).
std::string to_valid_utf8(std::string_view bytes);

bool is_whitespace(char32_t c);   // White_Space
bool is_control(char32_t c);      // categories C*, without unassigned ones
bool is_punctuation(char32_t c);  // categories P*, and ASCII symbols
bool is_mark_nonspacing(char32_t c);
bool is_numeric(char32_t c);  // categories N*
bool is_word(char32_t c);     // letters, marks, decimal digits, connectors
bool is_cjk(char32_t c);
std::string to_lower(std::string_view text);

enum class NormalForm : std::uint8_t { kNfc, kNfd, kNfkc, kNfkd };
std::string normalize(std::string_view text, NormalForm form);

}  // namespace quire::tokenizer
