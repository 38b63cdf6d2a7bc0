// quire backends: the capability matrix, generated from the code.
#include <algorithm>
#include <iostream>
#include <memory>

#include "cli/command.h"
#include "cli/json.h"
#include "cli/runtime_options.h"
#include "cli/table.h"
#include "quire/backend.h"

namespace quire::cli {
namespace {

// A row a capability, a column a backend.
Table wide_table() {
  Table table{.header = {"capability"}, .rows = {}};
  for (const AttentionBackend* backend : registered_backends()) {
    table.header.emplace_back(backend->name());
    std::size_t row = 0;
    for (const Capability& capability : capability_table(*backend)) {
      if (row == table.rows.size()) table.rows.push_back({std::string(capability.name)});
      table.rows[row++].push_back(capability.value);
    }
  }
  return table;
}

// The same as a block of lines a backend, which a terminal can show.
std::string blocks_text() {
  std::string out;
  for (const AttentionBackend* backend : registered_backends()) {
    const std::vector<Capability> rows = capability_table(*backend);
    std::size_t width = 0;
    for (const Capability& row : rows) width = std::max(width, row.name.size());
    out += (out.empty() ? "" : "\n") + std::string(backend->name()) + "\n";
    for (const Capability& row : rows) {
      if (row.value.empty()) continue;
      out += "  " + std::string(row.name) + std::string(width - row.name.size() + 2, ' ') + row.value + "\n";
    }
  }
  return out;
}

std::string blocks_json() {
  JsonValue::Array out;
  for (const AttentionBackend* backend : registered_backends()) {
    JsonValue::Object object = {{"name", backend->name()}};
    for (const Capability& row : capability_table(*backend)) object.emplace_back(std::string(row.name), row.value);
    out.emplace_back(std::move(object));
  }
  return json_text(out);
}

constexpr const char* kMarkdownIntroduction =
    "# Backends\n\n"
    "What each attention backend supports. This page is the output of `quire backends --format markdown`, and a test\n"
    "holds it to that. `quire explain` says for one configuration which backends can run it, and why others "
    "cannot.\n\n";

Result<int> run_backends(const std::string& format_name) {
  QUIRE_ASSIGN_OR_RETURN(const Format format, parse_format(format_name));
  switch (format) {
    case Format::kText:
      std::cout << blocks_text();
      break;
    case Format::kMarkdown:
      std::cout << kMarkdownIntroduction << markdown_table(wide_table());
      break;
    case Format::kCsv:
      std::cout << csv_table(wide_table());
      break;
    case Format::kJson:
      std::cout << blocks_json();
      break;
  }
  return kExitOk;
}

}  // namespace

std::function<int()> attach_backends(Usage& usage) {
  auto format = std::make_shared<std::string>("text");
  usage.options = {{"--format", format.get(), "text, markdown, csv or json"}};
  return [format] {
    const Result<int> status = run_backends(*format);
    return status.ok() ? *status : report(status.status());
  };
}

}  // namespace quire::cli
