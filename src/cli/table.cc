// Tables as text, Markdown and CSV.
#include "cli/table.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdio>

namespace quire::cli {
namespace {

// Characters, not bytes: continuation bytes of UTF-8 take no place.
std::size_t width(std::string_view text) {
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

bool is_number(std::string_view cell) {
  if (cell.starts_with('-')) cell.remove_prefix(1);
  return !cell.empty() && std::isdigit(static_cast<unsigned char>(cell.front())) != 0 &&
         cell.find_first_not_of("0123456789.,%eE+-x") == std::string_view::npos;
}

struct Column {
  std::size_t width = 0;
  bool right = true;  // every cell is a number or empty
};

std::vector<Column> measure(const Table& table) {
  std::vector<Column> columns(table.header.size());
  for (std::size_t i = 0; i < columns.size(); ++i) {
    columns[i].width = width(table.header[i]);
    bool any = false;
    for (const auto& row : table.rows) {
      columns[i].width = std::max(columns[i].width, width(row[i]));
      any = any || !row[i].empty();
      columns[i].right = columns[i].right && (row[i].empty() || is_number(row[i]));
    }
    columns[i].right = columns[i].right && any;
  }
  return columns;
}

std::string pad(const std::string& cell, const Column& column) {
  const std::string space(column.width - std::min(column.width, width(cell)), ' ');
  return column.right ? space + cell : cell + space;
}

std::string escape_markdown(std::string text) {
  for (std::size_t at = 0; (at = text.find('|', at)) != std::string::npos; at += 2) text.insert(at, 1, '\\');
  return text;
}

std::string escape_csv(const std::string& cell) {
  if (cell.find_first_of(",\"\n") == std::string::npos) return cell;
  std::string out = "\"";
  for (char c : cell) out += c == '"' ? std::string("\"\"") : std::string(1, c);
  return out + "\"";
}

}  // namespace

Result<Format> parse_format(std::string_view name) {
  if (name == "text") return Format::kText;
  if (name == "markdown" || name == "md") return Format::kMarkdown;
  if (name == "csv") return Format::kCsv;
  if (name == "json") return Format::kJson;
  return invalid_argument("format: want text, markdown (md), csv or json, got " + std::string(name));
}

std::string text_table(const Table& table) {
  const std::vector<Column> columns = measure(table);
  std::string out;
  const auto add_row = [&](const std::vector<std::string>& row) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i) line += (i == 0 ? "" : "  ") + pad(row[i], columns[i]);
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + "\n";
  };
  add_row(table.header);
  for (const auto& row : table.rows) add_row(row);
  return out;
}

std::string markdown_table(const Table& table) {
  const std::vector<Column> columns = measure(table);
  std::string out;
  const auto add_row = [&out](const std::vector<std::string>& row) {
    out += "|";
    for (const std::string& cell : row) out += " " + escape_markdown(cell) + (cell.empty() ? "|" : " |");
    out += "\n";
  };
  add_row(table.header);
  out += "|";
  for (const Column& column : columns) out += column.right ? "---:|" : "---|";
  out += "\n";
  for (const auto& row : table.rows) add_row(row);
  return out;
}

std::string csv_table(const Table& table) {
  std::string out;
  const auto add_row = [&out](const std::vector<std::string>& row) {
    for (std::size_t i = 0; i < row.size(); ++i) out += (i == 0 ? "" : ",") + escape_csv(row[i]);
    out += "\n";
  };
  add_row(table.header);
  for (const auto& row : table.rows) add_row(row);
  return out;
}

std::string fixed(double value, int digits) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}

std::string short_number(double value) {
  if (!std::isfinite(value)) return std::isnan(value) ? "nan" : (value > 0 ? "inf" : "-inf");
  if (value == 0) return "0";
  const int exponent = static_cast<int>(std::floor(std::log10(std::fabs(value))));
  if (exponent < -4) {
    char text[64];
    std::snprintf(text, sizeof text, "%.2e", value);
    return text;
  }
  return fixed(value, std::max(0, 2 - exponent));
}

std::string join(const std::vector<std::string>& parts, std::string_view separator) {
  std::string out;
  for (const std::string& part : parts) {
    if (!out.empty()) out += separator;
    out += part;
  }
  return out;
}

}  // namespace quire::cli
