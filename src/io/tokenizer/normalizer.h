// Normalizer: how a tokenizer changes text before it splits it.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "io/tokenizer/growth.h"
#include "io/tokenizer/json_fields.h"

namespace quire::tokenizer {

// Takes and gives valid UTF-8.
using Normalizer = std::function<Result<std::string>(std::string_view)>;

// From the file's "normalizer" (null: identity). Unknown types are kUnsupported.
Result<Normalizer> make_normalizer(const Json& json, std::string_view where, Growth& growth, int depth = 0);

}  // namespace quire::tokenizer
