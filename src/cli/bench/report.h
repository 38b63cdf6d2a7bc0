// The rows of quire bench and how they are printed.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cli/bench/measure.h"
#include "cli/bench/refcheck.h"
#include "cli/table.h"

namespace quire::cli {

struct BenchRow {
  std::string batch;  // spec
  std::string backend;
  std::string dtype;
  std::string kv_cache_dtype;
  std::string runtime;
  std::string command;  // that measures this row again
  std::string error;    // empty: the rest is there
  std::int32_t copies = 1;
  Work work;
  Timing timing;
  double copy_seconds = 0.0;  // of as many bytes; 0: not measured
  Roofline roofline;
  std::optional<RefCheck> refcheck;
};

// What was measured besides the rows.
struct BenchContext {
  std::string machine;  // processor and threads
  std::string shape;    // heads, sizes, block size
  Ceilings ceilings;
};

std::string format_report(const BenchContext& context, const std::vector<BenchRow>& rows, Format format);
std::string report_svg(const BenchContext& context, const std::vector<BenchRow>& rows);

}  // namespace quire::cli
