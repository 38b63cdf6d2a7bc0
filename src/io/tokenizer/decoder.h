// Decoder: turns tokens back into text.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "io/tokenizer/growth.h"
#include "io/tokenizer/json_fields.h"

namespace quire::tokenizer {

// Rewrites a list of tokens; the text is their concatenation at the end. Results may hold bytes that are no UTF-8.
using Decoder = std::function<std::vector<std::string>(std::vector<std::string>)>;

// From the file's "decoder" (null: tokens joined by spaces). Unknown types are kUnsupported.
Result<Decoder> make_decoder(const Json& json, std::string_view where, Growth& growth, int depth = 0);

}  // namespace quire::tokenizer
