// Parsing of JSON that comes from outside: malformed or deeply nested text is an error, never an exception.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "quire/status.h"

namespace quire {

// Copies and dumps of a document recurse, so its depth is bounded.
inline constexpr int kMaxJsonDepth = 64;

// Errors (kDataLoss) do not name the file: the caller knows it.
inline Result<nlohmann::json> parse_json(std::string_view text, int max_depth = kMaxJsonDepth) {
  bool too_deep = false;
  // A parse callback sees the depth before anything deeper is read.
  const auto watch = [&too_deep, max_depth](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
    too_deep = too_deep || depth > max_depth;
    return !too_deep;
  };
  nlohmann::json json = nlohmann::json::parse(text.begin(), text.end(), watch, /*allow_exceptions=*/false);
  if (too_deep) return data_loss("want JSON of at most " + std::to_string(max_depth) + " levels, got deeper text");
  if (json.is_discarded()) return data_loss("want JSON, got malformed text");
  return json;
}

}  // namespace quire
