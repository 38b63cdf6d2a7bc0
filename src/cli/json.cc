// JSON output.
#include "cli/json.h"

#include <nlohmann/json.hpp>
#include <type_traits>

namespace quire::cli {
namespace {

using OrderedJson = nlohmann::ordered_json;

OrderedJson convert(const JsonValue& value) {
  return std::visit(
      [](const auto& data) -> OrderedJson {
        using T = std::decay_t<decltype(data)>;
        if constexpr (std::is_same_v<T, JsonValue::Array>) {
          OrderedJson out = OrderedJson::array();
          for (const JsonValue& item : data) out.push_back(convert(item));
          return out;
        } else if constexpr (std::is_same_v<T, JsonValue::Object>) {
          OrderedJson out = OrderedJson::object();
          for (const auto& [key, item] : data) out[key] = convert(item);
          return out;
        } else {
          return data;
        }
      },
      value.data);
}

OrderedJson cell_value(const std::string& cell) {
  OrderedJson value = OrderedJson::parse(cell, nullptr, false);
  return value.is_number() || value.is_boolean() ? value : OrderedJson(cell);
}

std::string dump(const OrderedJson& value) {
  return value.dump(1, ' ', false, OrderedJson::error_handler_t::replace) + "\n";
}

}  // namespace

std::string json_text(const JsonValue& value) { return dump(convert(value)); }

std::string json_line(const JsonValue& value) {
  return convert(value).dump(-1, ' ', false, OrderedJson::error_handler_t::replace) + "\n";
}

std::string json_table(const Table& table) {
  OrderedJson out = OrderedJson::array();
  for (const auto& row : table.rows) {
    OrderedJson object = OrderedJson::object();
    for (std::size_t i = 0; i < row.size(); ++i) object[table.header[i]] = cell_value(row[i]);
    out.push_back(std::move(object));
  }
  return dump(out);
}

}  // namespace quire::cli
