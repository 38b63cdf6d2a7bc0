// The parser of a safetensors header: a SAX handler that walks the schema, so that depth is bounded and repeated keys
// are seen.
#include "io/safetensors_header.h"

#include <array>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

namespace quire {
namespace {

using Json = nlohmann::json;

// Where the parser stands. Each value and key is legal in one or two of these only.
enum class Where { kStart, kTop, kMetadata, kEntry, kShape, kOffsets, kDone };

class HeaderHandler : public nlohmann::json_sax<Json> {
 public:
  SafetensorsHeader take() { return std::move(header_); }
  const std::string& error() const { return error_; }
  bool done() const { return where_ == Where::kDone; }

  bool null() override { return wrong_value("null"); }
  bool boolean(bool) override { return wrong_value("a boolean"); }
  bool number_float(double, const std::string& text) override { return wrong_value(text); }
  bool binary(binary_t&) override { return wrong_value("binary data"); }
  bool number_integer(std::int64_t value) override { return wrong_value(std::to_string(value)); }
  bool number_unsigned(std::uint64_t value) override {
    if (where_ != Where::kShape && where_ != Where::kOffsets) return wrong_value(std::to_string(value));
    if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
      return fail(field() + ": want a number below 2^63, got " + std::to_string(value));
    }
    numbers_.push_back(static_cast<std::int64_t>(value));
    return true;
  }

  bool string(std::string& value) override {
    if (where_ == Where::kMetadata) {
      if (!header_.metadata.emplace(key_, value).second) return fail("__metadata__." + key_ + ": given twice");
      return true;
    }
    if (where_ != Where::kEntry || key_ != "dtype") return wrong_value("\"" + value + "\"");
    entry_.dtype = value;
    return true;
  }

  bool start_object(std::size_t) override {
    if (where_ == Where::kStart) return go(Where::kTop);
    if (where_ != Where::kTop) return wrong_value("an object");
    if (key_ == "__metadata__") return go(Where::kMetadata);
    entry_ = {};
    entry_.name = key_;
    seen_.clear();
    return go(Where::kEntry);
  }

  bool key(std::string& value) override {
    if (where_ == Where::kTop && !names_.insert(value).second) return fail(value + ": given twice");
    if (where_ == Where::kEntry) {
      if (value != "dtype" && value != "shape" && value != "data_offsets") {
        return fail(entry_.name + "." + value + ": want dtype, shape or data_offsets");
      }
      if (!seen_.insert(value).second) return fail(entry_.name + "." + value + ": given twice");
    }
    key_ = value;
    return true;
  }

  bool end_object() override {
    if (where_ == Where::kTop) return go(Where::kDone);
    if (where_ == Where::kEntry) {
      for (const char* wanted : {"dtype", "shape", "data_offsets"}) {
        if (!seen_.contains(wanted)) return fail(entry_.name + "." + wanted + ": missing");
      }
      header_.entries.push_back(std::move(entry_));
    }
    return go(Where::kTop);
  }

  bool start_array(std::size_t) override {
    if (where_ != Where::kEntry || key_ == "dtype") return wrong_value("an array");
    numbers_.clear();
    return go(key_ == "shape" ? Where::kShape : Where::kOffsets);
  }

  bool end_array() override {
    if (where_ == Where::kShape) {
      entry_.shape = numbers_;
    } else {
      if (numbers_.size() != 2) return fail(field() + ": want 2 numbers, got " + std::to_string(numbers_.size()));
      entry_.begin = numbers_[0];
      entry_.end = numbers_[1];
    }
    return go(Where::kEntry);
  }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception&) override {
    if (error_.empty()) error_ = "malformed JSON at byte " + std::to_string(position);
    return false;
  }

 private:
  bool go(Where where) {
    where_ = where;
    return true;
  }
  bool fail(std::string message) {
    error_ = std::move(message);
    return false;
  }
  std::string field() const {
    switch (where_) {
      case Where::kMetadata:
        return "__metadata__." + key_;
      case Where::kEntry:
      case Where::kShape:
      case Where::kOffsets:
        return entry_.name + "." + key_;
      default:
        return key_.empty() ? "header" : key_;
    }
  }
  const char* wanted() const {
    switch (where_) {
      case Where::kMetadata:
        return "a string";
      case Where::kEntry:
        return key_ == "dtype" ? "a string" : "an array of numbers";
      case Where::kShape:
      case Where::kOffsets:
        return "an integer >= 0";
      default:
        return "an object";
    }
  }
  bool wrong_value(const std::string& got) { return fail(field() + ": want " + wanted() + ", got " + got); }

  Where where_ = Where::kStart;
  SafetensorsHeader header_;
  SafetensorsEntry entry_;
  std::vector<std::int64_t> numbers_;
  std::set<std::string> names_;
  std::set<std::string> seen_;
  std::string key_;
  std::string error_;
};

}  // namespace

std::int64_t safetensors_dtype_bytes(std::string_view dtype) {
  static constexpr std::array<std::pair<std::string_view, std::int64_t>, 16> kBytes = {{{"F64", 8},
                                                                                        {"I64", 8},
                                                                                        {"U64", 8},
                                                                                        {"C64", 8},
                                                                                        {"F32", 4},
                                                                                        {"I32", 4},
                                                                                        {"U32", 4},
                                                                                        {"F16", 2},
                                                                                        {"BF16", 2},
                                                                                        {"I16", 2},
                                                                                        {"U16", 2},
                                                                                        {"F8_E4M3", 1},
                                                                                        {"F8_E5M2", 1},
                                                                                        {"I8", 1},
                                                                                        {"U8", 1},
                                                                                        {"BOOL", 1}}};
  for (const auto& [name, bytes] : kBytes) {
    if (name == dtype) return bytes;
  }
  return 0;
}

Result<SafetensorsHeader> parse_safetensors_header(std::string_view text) {
  HeaderHandler handler;
  try {
    if (!Json::sax_parse(text.begin(), text.end(), &handler)) return data_loss(handler.error());
  } catch (const std::exception& error) {
    return data_loss(std::string("header: ") + error.what());
  }
  if (!handler.done()) return data_loss("header: want an object");
  return handler.take();
}

}  // namespace quire
