// The decoders of tokenizer.json.
#include "io/tokenizer/decoder.h"

#include <algorithm>
#include <array>
#include <utility>

#include "io/tokenizer/byte_level.h"

namespace quire::tokenizer {
namespace {

constexpr int kDeepestDecoder = 8;
using Tokens = std::vector<std::string>;

Tokens decode_byte_level(Tokens tokens) {
  for (std::string& token : tokens) {
    if (auto bytes = alphabet_to_bytes(token)) token = std::move(*bytes);
  }
  return tokens;
}

// English contractions and punctuation as the WordPiece decoder tidies them.
void clean_up(std::string& text) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 11> kRules{{{" .", "."},
                                                                                  {" ?", "?"},
                                                                                  {" !", "!"},
                                                                                  {" ,", ","},
                                                                                  {" ' ", "'"},
                                                                                  {" n't", "n't"},
                                                                                  {" 'm", "'m"},
                                                                                  {" do not", " don't"},
                                                                                  {" 's", "'s"},
                                                                                  {" 've", "'ve"},
                                                                                  {" 're", "'re"}}};
  for (const auto& [from, to] : kRules) text = replace_all(text, from, to);
}

Result<Decoder> make_word_piece_decoder(const Json& json, std::string_view where) {
  QUIRE_ASSIGN_OR_RETURN(const std::string prefix, string_field(json, "prefix", "##", where));
  QUIRE_ASSIGN_OR_RETURN(const bool cleanup, bool_field(json, "cleanup", true, where));
  return Decoder([prefix, cleanup](Tokens tokens) {
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      if (i > 0) tokens[i] = tokens[i].starts_with(prefix) ? tokens[i].substr(prefix.size()) : " " + tokens[i];
      if (cleanup) clean_up(tokens[i]);
    }
    return tokens;
  });
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

// "<0xE2>" tokens in a row become their bytes, or one U+FFFD each where those are no text.
Tokens decode_byte_fallback(Tokens tokens) {
  Tokens out;
  std::string bytes;
  const auto flush = [&] {
    if (bytes.empty()) return;
    if (to_valid_utf8(bytes) == bytes) {
      out.push_back(bytes);
    } else {
      out.insert(out.end(), bytes.size(), "\xef\xbf\xbd");
    }
    bytes.clear();
  };
  for (std::string& token : tokens) {
    const bool is_byte = token.size() == 6 && token.starts_with("<0x") && token.back() == '>' &&
                         hex_digit(token[3]) >= 0 && hex_digit(token[4]) >= 0;
    if (is_byte) {
      bytes += static_cast<char>(hex_digit(token[3]) * 16 + hex_digit(token[4]));
    } else {
      flush();
      out.push_back(std::move(token));
    }
  }
  flush();
  return out;
}

Tokens fuse(const Tokens& tokens) {
  std::string all;
  for (const std::string& token : tokens) all += token;
  return {std::move(all)};
}

Result<Decoder> make_strip_decoder(const Json& json, std::string_view where) {
  QUIRE_ASSIGN_OR_RETURN(const std::string content, string_field(json, "content", " ", where));
  QUIRE_ASSIGN_OR_RETURN(const std::int64_t start, integer_field(json, "start", 0, where));
  QUIRE_ASSIGN_OR_RETURN(const std::int64_t stop, integer_field(json, "stop", 0, where));
  if (content.empty()) return data_loss(std::string(where) + ".content: want a character, got nothing");
  return Decoder([content, start, stop](Tokens tokens) {
    for (std::string& token : tokens) {
      std::string_view rest = token;
      for (std::int64_t i = 0; i < start && rest.starts_with(content); ++i) rest.remove_prefix(content.size());
      for (std::int64_t i = 0; i < stop && rest.ends_with(content); ++i) rest.remove_suffix(content.size());
      token = std::string(rest);
    }
    return tokens;
  });
}

Result<Decoder> make_decoder_sequence(const Json& json, std::string_view where, Growth& growth, int depth) {
  const auto parts = json.find("decoders");
  if (parts == json.end() || !parts->is_array()) return data_loss(std::string(where) + ".decoders: want an array");
  std::vector<Decoder> steps;
  for (const Json& part : *parts) {
    QUIRE_ASSIGN_OR_RETURN(Decoder step, make_decoder(part, std::string(where) + ".decoders", growth, depth + 1));
    steps.push_back(std::move(step));
  }
  return Decoder([steps = std::move(steps)](Tokens tokens) {
    for (const Decoder& step : steps) tokens = step(std::move(tokens));
    return tokens;
  });
}

}  // namespace

Result<Decoder> make_decoder(const Json& json, std::string_view where, Growth& growth, int depth) {
  if (json.is_null()) {
    return Decoder([](Tokens tokens) {
      for (std::size_t i = 1; i < tokens.size(); ++i) tokens[i].insert(0, 1, ' ');
      return tokens;
    });
  }
  if (depth > kDeepestDecoder)
    return data_loss(std::string(where) + ": want at most " + std::to_string(kDeepestDecoder) + " nested sequences");
  QUIRE_ASSIGN_OR_RETURN(const std::string type, type_of(json, where));
  if (type == "ByteLevel") return Decoder(decode_byte_level);
  if (type == "WordPiece") return make_word_piece_decoder(json, where);
  if (type == "ByteFallback") return Decoder(decode_byte_fallback);
  if (type == "Fuse") return Decoder(fuse);
  if (type == "Strip") return make_strip_decoder(json, where);
  if (type == "Sequence") return make_decoder_sequence(json, where, growth, depth);
  if (type == "Replace") {
    QUIRE_ASSIGN_OR_RETURN(const PatternField pattern, pattern_field(json, where));
    QUIRE_ASSIGN_OR_RETURN(const std::string content, string_field(json, "content", "", where));
    if (pattern.is_regex) return unsupported(std::string(where) + ".pattern: want a String in a decoder, got a Regex");
    QUIRE_RETURN_IF_ERROR(growth.add_replacement(pattern.text.size(), content, where));
    return Decoder([pattern, content](Tokens tokens) {
      for (std::string& token : tokens) token = replace_all(token, pattern.text, content);
      return tokens;
    });
  }
  return unsupported(std::string(where) +
                     ".type: want ByteLevel, WordPiece, ByteFallback, Fuse, Strip, Replace or Sequence, got '" + type +
                     "'");
}

}  // namespace quire::tokenizer
