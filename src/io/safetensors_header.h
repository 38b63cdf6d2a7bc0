// The JSON header of a safetensors file: its schema as structs, and the parser that accepts nothing else.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "quire/status.h"

namespace quire {

struct SafetensorsEntry {
  std::string name;
  std::string dtype;  // the format's word: "F32", "BF16", "F8_E4M3" ...
  std::vector<std::int64_t> shape;
  std::int64_t begin = 0;  // byte offsets into the data behind the header
  std::int64_t end = 0;
};

struct SafetensorsHeader {
  std::map<std::string, std::string> metadata;
  std::vector<SafetensorsEntry> entries;  // in the order of the text
};

// Parses the header's text. Errors (kDataLoss) name the key and what is wrong: malformed JSON, an unknown, missing or
// repeated key, a value of the wrong type, a number that is negative or not an integer, nesting beyond the schema.
// Offsets and shapes are not judged here.
Result<SafetensorsHeader> parse_safetensors_header(std::string_view text);

// Bytes of one element of a dtype word; 0 for a word that the format does not have.
std::int64_t safetensors_dtype_bytes(std::string_view dtype);

}  // namespace quire
