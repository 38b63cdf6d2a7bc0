// PreTokenizer: cuts normalised text into the pieces that a tokenizer's model sees one by one.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "io/tokenizer/growth.h"
#include "io/tokenizer/json_fields.h"

namespace quire::tokenizer {

using Pieces = std::vector<std::string>;
// Cuts (and may rewrite) each piece further.
using PreTokenizer = std::function<Result<Pieces>(Pieces)>;

// From the file's "pre_tokenizer" (null: the text is one piece). Unknown types are kUnsupported.
Result<PreTokenizer> make_pre_tokenizer(const Json& json, std::string_view where, Growth& growth, int depth = 0);

}  // namespace quire::tokenizer
