// Reading of tokenizer.json fields with errors that name the key.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "quire/status.h"

namespace quire::tokenizer {

using Json = nlohmann::json;

inline Status wrong_field(std::string_view where, std::string_view want, const Json& got) {
  return data_loss(std::string(where) + ": want " + std::string(want) + ", got " + got.type_name());
}

// A missing or null field gives the fallback.
inline Result<bool> bool_field(const Json& object, const char* key, bool fallback, std::string_view where) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return fallback;
  if (!found->is_boolean()) return wrong_field(std::string(where) + "." + key, "a boolean", *found);
  return found->get<bool>();
}

inline Result<std::string> string_field(const Json& object, const char* key, std::string_view fallback,
                                        std::string_view where) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return std::string(fallback);
  if (!found->is_string()) return wrong_field(std::string(where) + "." + key, "a string", *found);
  return found->get<std::string>();
}

inline Result<std::int64_t> integer_field(const Json& object, const char* key, std::int64_t fallback,
                                          std::string_view where) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return fallback;
  if (!found->is_number_integer()) return wrong_field(std::string(where) + "." + key, "an integer", *found);
  return found->get<std::int64_t>();
}

// The "type" of a component.
inline Result<std::string> type_of(const Json& component, std::string_view where) {
  if (!component.is_object()) return wrong_field(where, "an object", component);
  return string_field(component, "type", "", where);
}

// {"String": "..."} or {"Regex": "..."}.
struct PatternField {
  std::string text;
  bool is_regex = false;
};
inline Result<PatternField> pattern_field(const Json& object, std::string_view where) {
  const auto found = object.find("pattern");
  if (found != object.end() && found->is_object()) {
    for (const char* kind : {"String", "Regex"}) {
      const auto text = found->find(kind);
      if (text != found->end() && text->is_string()) return PatternField{text->get<std::string>(), kind[0] == 'R'};
    }
  }
  return data_loss(std::string(where) + ".pattern: want {\"String\": text} or {\"Regex\": text}");
}

}  // namespace quire::tokenizer
