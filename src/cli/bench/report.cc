// Benchmark rows as text, Markdown, CSV, JSON and SVG.
#include "cli/bench/report.h"

#include <algorithm>

#include "cli/bench/svg.h"
#include "cli/json.h"

namespace quire::cli {
namespace {

double rate(double amount, double seconds, double unit) { return seconds > 0 ? amount / seconds / unit : 0.0; }

// Part of the roofline that the median reached, in [0, 1].
double fraction(const BenchRow& row) {
  return row.roofline.known && row.timing.median_seconds > 0 ? row.roofline.floor_seconds / row.timing.median_seconds
                                                             : 0.0;
}

// Batches that were drawn from a trace have long specs; the commands below a table hold them whole.
std::string shorten(const std::string& spec, std::size_t width) {
  return spec.size() > width ? spec.substr(0, width - 1) + "…" : spec;
}

std::string refcheck_cell(const BenchRow& row) {
  if (!row.refcheck) return "";
  return (row.refcheck->passed() ? "ok, nmse " : "WRONG, nmse ") + short_number(row.refcheck->nmse);
}

bool any_refcheck(const std::vector<BenchRow>& rows) {
  return std::any_of(rows.begin(), rows.end(), [](const BenchRow& row) { return row.refcheck.has_value(); });
}

// The table for people: one unit a column, rounded.
Table readable_table(const std::vector<BenchRow>& rows) {
  const bool checked = any_refcheck(rows);
  Table table{.header = {"batch", "backend", "dtype", "kv cache", "ran on", "ms", "best ms", "TFLOP/s", "GB/s", "bound",
                         "of roofline"},
              .rows = {}};
  if (checked) table.header.emplace_back("float64");
  for (const BenchRow& row : rows) {
    std::vector<std::string> cells = {shorten(row.batch, 40), row.backend, row.dtype, row.kv_cache_dtype, row.runtime};
    if (!row.error.empty()) {
      cells.push_back(row.error);
      cells.resize(table.header.size());
      table.rows.push_back(std::move(cells));
      continue;
    }
    const double seconds = row.timing.median_seconds;
    cells.push_back(short_number(seconds * 1e3));
    cells.push_back(short_number(row.timing.best_seconds * 1e3));
    cells.push_back(short_number(rate(row.work.flops, seconds, 1e12)));
    cells.push_back(short_number(rate(row.work.bytes, seconds, 1e9)));
    cells.emplace_back(row.roofline.known ? (row.roofline.memory_bound ? "memory" : "compute") : "");
    cells.push_back(row.roofline.known ? fixed(fraction(row) * 100, 1) + " %" : "");
    if (checked) cells.push_back(refcheck_cell(row));
    table.rows.push_back(std::move(cells));
  }
  return table;
}

// The table for programs: base units, everything.
Table complete_table(const BenchContext& context, const std::vector<BenchRow>& rows) {
  Table table{.header = {"batch",
                         "backend",
                         "dtype",
                         "kv_cache_dtype",
                         "runtime",
                         "shape",
                         "machine",
                         "error",
                         "median_s",
                         "best_s",
                         "repeats",
                         "copies",
                         "flops",
                         "bytes",
                         "bound",
                         "roofline_fraction",
                         "peak_f32_flops",
                         "peak_bf16_flops",
                         "dram_bytes_per_s",
                         "copy_bytes_per_s",
                         "copy_s",
                         "nmse",
                         "nmse_limit",
                         "command"},
              .rows = {}};
  const auto exact = [](double value) { return fixed(value, 0); };
  for (const BenchRow& row : rows) {
    table.rows.push_back({row.batch,
                          row.backend,
                          row.dtype,
                          row.kv_cache_dtype,
                          row.runtime,
                          context.shape,
                          context.machine,
                          row.error,
                          fixed(row.timing.median_seconds, 9),
                          fixed(row.timing.best_seconds, 9),
                          std::to_string(row.timing.repeats),
                          std::to_string(row.copies),
                          exact(row.work.flops),
                          exact(row.work.bytes),
                          row.roofline.known ? (row.roofline.memory_bound ? "memory" : "compute") : "",
                          row.roofline.known ? fixed(fraction(row), 4) : "",
                          exact(context.ceilings.float32_flops),
                          exact(context.ceilings.bfloat16_flops),
                          exact(context.ceilings.dram_bytes),
                          exact(context.ceilings.copy_bytes),
                          row.copy_seconds > 0 ? fixed(row.copy_seconds, 9) : "",
                          row.refcheck ? short_number(row.refcheck->nmse) : "",
                          row.refcheck ? short_number(row.refcheck->limit) : "",
                          row.command});
  }
  return table;
}

std::string ceilings_line(const Ceilings& ceilings) {
  if (ceilings.float32_flops <= 0) return "ceilings: not measured";
  std::string line = "ceilings of this run: float32 " + short_number(ceilings.float32_flops / 1e12) + " TFLOP/s, ";
  if (ceilings.bfloat16_flops > 0) line += "bfloat16 " + short_number(ceilings.bfloat16_flops / 1e12) + " TFLOP/s, ";
  line += "DRAM reads " + short_number(ceilings.dram_bytes / 1e9) + " GB/s";
  if (ceilings.copy_bytes > 0) line += ", copies " + short_number(ceilings.copy_bytes / 1e9) + " GB/s";
  if (ceilings.launch_seconds > 0) line += "; an empty kernel " + short_number(ceilings.launch_seconds * 1e6) + " us";
  return line;
}

}  // namespace

std::string format_report(const BenchContext& context, const std::vector<BenchRow>& rows, Format format) {
  if (format == Format::kJson) return json_table(complete_table(context, rows));
  if (format == Format::kCsv) return csv_table(complete_table(context, rows));
  const std::string head = context.machine + "; " + context.shape + "\n" + ceilings_line(context.ceilings) + "\n\n";
  std::string commands;
  for (const BenchRow& row : rows) commands += row.command + "\n";
  const Table table = readable_table(rows);
  if (format == Format::kMarkdown) {
    return head + markdown_table(table) + "\nEach row again:\n\n```sh\n" + commands + "```\n";
  }
  return head + text_table(table) + "\neach row again:\n" + commands;
}

std::string report_svg(const BenchContext& context, const std::vector<BenchRow>& rows) {
  BarChart chart{.title = "quire: part of the roofline reached",
                 .subtitle = context.machine + "; " + context.shape,
                 .second_line = ceilings_line(context.ceilings),
                 .bars = {}};
  for (const BenchRow& row : rows) {
    std::string label = shorten(row.batch, 24);
    label += " " + row.dtype + (row.kv_cache_dtype == "auto" ? "" : "/" + row.kv_cache_dtype);
    const double seconds = row.timing.median_seconds;
    std::string note = row.error;
    if (note.empty()) {
      note = fixed(fraction(row) * 100, 0) + " %, " + short_number(seconds * 1e3) + " ms, " +
             (row.roofline.memory_bound ? short_number(rate(row.work.bytes, seconds, 1e9)) + " GB/s"
                                        : short_number(rate(row.work.flops, seconds, 1e12)) + " TFLOP/s");
    }
    chart.bars.push_back({.label = std::move(label),
                          .fraction = fraction(row),
                          .memory_bound = row.roofline.memory_bound,
                          .note = std::move(note)});
  }
  return svg_bar_chart(chart);
}

}  // namespace quire::cli
