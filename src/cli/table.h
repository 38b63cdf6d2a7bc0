// Table: rows of text, printed as aligned columns, Markdown or CSV.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "quire/status.h"

namespace quire::cli {

struct Table {
  std::vector<std::string> header;
  std::vector<std::vector<std::string>> rows;
};

enum class Format { kText, kMarkdown, kCsv, kJson };
// "text", "markdown" or "md", "csv", "json"; an unknown name is an error that lists the valid ones.
Result<Format> parse_format(std::string_view name);

// Numbers (and cells that start with one) stand right, other cells left.
std::string text_table(const Table& table);
std::string markdown_table(const Table& table);
// Quotes cells that need it, as RFC 4180 says.
std::string csv_table(const Table& table);

// `value` with `digits` digits after the point.
std::string fixed(double value, int digits);
// Three significant digits, without an exponent for the sizes that occur here: "0.0123", "1.23", "123", "12300".
std::string short_number(double value);
// The parts joined by `separator`.
std::string join(const std::vector<std::string>& parts, std::string_view separator);

}  // namespace quire::cli
