// quire replay: runs attention case files and compares with their answers.
#include <algorithm>
#include <filesystem>
#include <iostream>
#include <memory>

#include "cli/command.h"
#include "cli/json.h"
#include "cli/progress.h"
#include "cli/replay/replay_case.h"
#include "cli/runtime_options.h"
#include "cli/table.h"

namespace quire::cli {
namespace {

struct ReplayFlags {
  std::vector<std::string> paths;
  RuntimeOptions runtime;
  std::string format = "text";
  std::string layout;
  bool separate_scales = false;
};

struct Row {
  std::string name;
  std::string backend;
  std::string oracle;
  std::string runtime;
  ReplayVerdict verdict;
};

// The case files that the arguments name; a folder stands for all of its *.safetensors, in the order of their names.
Result<std::vector<std::string>> expand_paths(const std::vector<std::string>& paths) {
  std::vector<std::string> files;
  for (const std::string& path : paths) {
    std::error_code error;
    if (!std::filesystem::is_directory(path, error)) {
      files.push_back(path);
      continue;
    }
    std::vector<std::string> inside;
    for (const auto& entry : std::filesystem::directory_iterator(path, error)) {
      if (entry.path().extension() == ".safetensors") inside.push_back(entry.path().string());
    }
    if (inside.empty()) return not_found(path + ": no *.safetensors file");
    std::sort(inside.begin(), inside.end());
    files.insert(files.end(), inside.begin(), inside.end());
  }
  return files;
}

Result<ReplayOptions> replay_options(const ReplayFlags& options) {
  ReplayOptions out;
  if (!options.layout.empty()) {
    QUIRE_ASSIGN_OR_RETURN(out.layout, parse_kv_cache_layout(options.layout));
  }
  out.scales = options.separate_scales ? ScalePlacement::kSeparate : ScalePlacement::kInline;
  return out;
}

void replay_file(const std::string& path, const std::vector<Runtime>& runtimes, ReplayOptions options,
                 std::vector<Row>& rows) {
  const auto read = read_attention_case(path);
  if (!read.ok()) {
    Row row;
    row.name = std::filesystem::path(path).stem().string();
    row.verdict.complaint = read.status().message();
    rows.push_back(std::move(row));
    return;
  }
  for (const Runtime& runtime : runtimes) {
    options.runtime = runtime;
    rows.push_back({.name = read->name,
                    .backend = read->backend,
                    .oracle = read->oracle,
                    .runtime = runtime_name(runtime),
                    .verdict = replay_case(*read, options)});
  }
}

void print_text(const std::vector<Row>& rows) {
  Table table{.header = {"case", "backend", "oracle", "ran on", "max error", "error/limit", "cache", "result"},
              .rows = {}};
  for (const Row& row : rows) {
    table.rows.push_back({row.name, row.backend, row.oracle, row.runtime, short_number(row.verdict.max_error),
                          fixed(row.verdict.worst, 3), row.verdict.cache,
                          row.verdict.passed ? "passed" : "FAILED: " + row.verdict.complaint});
  }
  std::cout << text_table(table);
}

void print_json(const std::vector<Row>& rows) {
  Table table{.header = {"case", "backend", "oracle", "runtime", "max_error", "error_over_limit", "cache", "passed",
                         "complaint"},
              .rows = {}};
  for (const Row& row : rows) {
    table.rows.push_back({row.name, row.backend, row.oracle, row.runtime, short_number(row.verdict.max_error),
                          short_number(row.verdict.worst), row.verdict.cache, row.verdict.passed ? "true" : "false",
                          row.verdict.complaint});
  }
  std::cout << json_table(table);
}

Result<int> run_replay(const ReplayFlags& options) {
  QUIRE_ASSIGN_OR_RETURN(const Format format, parse_format(options.format));
  if (format != Format::kText && format != Format::kJson) {
    return invalid_argument("format: want text or json, got " + options.format);
  }
  QUIRE_ASSIGN_OR_RETURN(const std::vector<Runtime> runtimes, resolve_runtimes(options.runtime));
  QUIRE_ASSIGN_OR_RETURN(const std::vector<std::string> files, expand_paths(options.paths));
  QUIRE_ASSIGN_OR_RETURN(const ReplayOptions common, replay_options(options));
  std::vector<Row> rows;
  {
    Progress progress("replaying", files.size());
    for (const std::string& file : files) {
      progress.step(std::filesystem::path(file).stem().string());
      replay_file(file, runtimes, common, rows);
    }
  }
  const auto failed = static_cast<std::size_t>(
      std::count_if(rows.begin(), rows.end(), [](const Row& row) { return !row.verdict.passed; }));
  if (format == Format::kJson) {
    print_json(rows);
  } else {
    print_text(rows);
    std::cout << rows.size() - failed << " passed, " << failed << " failed\n";
  }
  return failed == 0 ? kExitOk : kExitFailure;
}

}  // namespace

std::function<int()> attach_replay(Usage& usage) {
  auto options = std::make_shared<ReplayFlags>();
  usage.options = {
      {"paths", &options->paths, "Case files, or folders of them", Option::Presence::kRequired},
      {"--layout", &options->layout, "Run on a cache of this layout (NHD or HND) where the backend has it"},
      {"--separate-scales", &options->separate_scales,
       "Keep the scales of per-token-head caches in tensors of their own"},
      {"--format", &options->format, "text or json"},
  };
  add_runtime_options(usage, options->runtime);
  usage.footer =
      "Prints a row for each case; the last line is \"N passed, M failed\". The exit status is 0 only if all passed.";
  return [options] {
    const Result<int> status = run_replay(*options);
    return status.ok() ? *status : report(status.status());
  };
}

}  // namespace quire::cli
