// The byte alphabet of byte-level BPE: every byte as one printable character, so that merges work on text.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "io/tokenizer/unicode.h"

namespace quire::tokenizer {

// Printable Latin-1 bytes stand for themselves; the other 68 get U+0100, U+0101, ... in ascending order.
struct ByteAlphabet {
  std::array<char32_t, 256> character{};
  std::array<std::int16_t, 512> byte{};  // -1: no byte

  constexpr ByteAlphabet() {
    byte.fill(-1);
    char32_t next = 0x100;
    for (unsigned i = 0; i < 256; ++i) {
      const bool printable = (i >= 0x21 && i <= 0x7e) || (i >= 0xa1 && i <= 0xac) || i >= 0xae;
      character[i] = printable ? static_cast<char32_t>(i) : next++;
      byte[character[i]] = static_cast<std::int16_t>(i);
    }
  }
};
inline constexpr ByteAlphabet kByteAlphabet;

inline std::string bytes_to_alphabet(std::string_view bytes) {
  std::string text;
  for (const char c : bytes) append_utf8(text, kByteAlphabet.character[static_cast<unsigned char>(c)]);
  return text;
}

// The bytes that a token stands for; nothing if it holds a character that stands for none.
inline std::optional<std::string> alphabet_to_bytes(std::string_view token) {
  std::string bytes;
  for (std::size_t offset = 0; offset < token.size();) {
    const char32_t c = next_char(token, offset);
    if (c >= kByteAlphabet.byte.size() || kByteAlphabet.byte[c] < 0) return std::nullopt;
    bytes += static_cast<char>(kByteAlphabet.byte[c]);
  }
  return bytes;
}

}  // namespace quire::tokenizer
