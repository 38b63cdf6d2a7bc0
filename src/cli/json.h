// JsonValue: what the subcommands print as JSON. The JSON library stays in json.cc, since it costs ten seconds a file.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "cli/table.h"

namespace quire::cli {

struct JsonValue {
  using Array = std::vector<JsonValue>;
  using Object = std::vector<std::pair<std::string, JsonValue>>;  // keeps the order

  JsonValue() = default;                                           // null
  JsonValue(bool value) : data(value) {}                           // NOLINT(google-explicit-constructor)
  JsonValue(std::int32_t value) : data(std::int64_t{value}) {}     // NOLINT(google-explicit-constructor)
  JsonValue(std::int64_t value) : data(value) {}                   // NOLINT(google-explicit-constructor)
  JsonValue(double value) : data(value) {}                         // NOLINT(google-explicit-constructor)
  JsonValue(const char* value) : data(std::string(value)) {}       // NOLINT(google-explicit-constructor)
  JsonValue(std::string_view value) : data(std::string(value)) {}  // NOLINT(google-explicit-constructor)
  JsonValue(std::string value) : data(std::move(value)) {}         // NOLINT(google-explicit-constructor)
  JsonValue(Array value) : data(std::move(value)) {}               // NOLINT(google-explicit-constructor)
  JsonValue(Object value) : data(std::move(value)) {}              // NOLINT(google-explicit-constructor)

  std::variant<std::nullptr_t, bool, std::int64_t, double, std::string, Array, Object> data = nullptr;
};

template <class Values>
JsonValue json_array(const Values& values) {
  JsonValue::Array out;
  for (const auto& value : values) out.emplace_back(value);
  return out;
}

// Indented text with a newline at its end. Numbers that JSON does not have (NaN, infinities) become null.
std::string json_text(const JsonValue& value);
// The same in one line, as JSON lines have it.
std::string json_line(const JsonValue& value);
// An array of objects, one a row; cells that are JSON numbers, true or false stand without quotes.
std::string json_table(const Table& table);

}  // namespace quire::cli
