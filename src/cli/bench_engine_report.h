// Latencies of a served trace: percentiles, table and plot.
#pragma once

#include <string>
#include <vector>

#include "cli/table.h"
#include "quire/engine.h"

namespace quire::cli {

struct ServedTrace {
  std::string title;
  double seconds = 0.0;
  std::int64_t requests = 0;
  std::vector<double> first_token_seconds;  // from arrival
  std::vector<double> inter_token_seconds;  // tokens that come together share their gap
  std::vector<double> request_seconds;      // from arrival to the last token
  EngineStats stats;
};

// The value that `fraction` of the values do not exceed; 0 without values.
double percentile(std::vector<double> values, double fraction);
Table latency_table(const ServedTrace& served);
// Requests/s and tokens/s, in words.
std::string throughput_line(const ServedTrace& served);
// Both cumulative distributions over milliseconds on a logarithmic axis, as a self-contained SVG document.
std::string latency_svg(const ServedTrace& served);

}  // namespace quire::cli
