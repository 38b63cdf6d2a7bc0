// Implements the report of served traces.
#include "cli/bench_engine_report.h"

#include <algorithm>
#include <cmath>

namespace quire::cli {
namespace {

constexpr double kLeft = 60;
constexpr double kTop = 70;
constexpr double kWidth = 640;
constexpr double kHeight = 300;
constexpr double kFirstDecade = -1;  // 0.1 ms
constexpr double kLastDecade = 5;    // 100 s
constexpr const char* kFirstColour = "#4477aa";
constexpr const char* kGapColour = "#ee6677";

std::string number(double value) { return fixed(value, 1); }

double x_of(double milliseconds) {
  const double decade = std::log10(std::max(milliseconds, 1e-9));
  return kLeft + kWidth * std::clamp((decade - kFirstDecade) / (kLastDecade - kFirstDecade), 0.0, 1.0);
}

double y_of(double fraction) { return kTop + kHeight * (1.0 - fraction); }

std::string text_at(double x, double y, const std::string& style, const std::string& content) {
  std::string safe;
  for (const char c : content) safe += c == '<' ? "&lt;" : c == '&' ? "&amp;" : std::string(1, c);
  return "<text x=\"" + number(x) + "\" y=\"" + number(y) + "\" " + style + ">" + safe + "</text>\n";
}

std::string grid() {
  std::string out;
  const auto line = [&out](double x1, double y1, double x2, double y2) {
    out += "<line x1=\"" + number(x1) + "\" y1=\"" + number(y1) + "\" x2=\"" + number(x2) + "\" y2=\"" + number(y2) +
           "\" stroke=\"#dddddd\"/>\n";
  };
  for (double decade = kFirstDecade; decade <= kLastDecade; ++decade) {
    const double milliseconds = std::pow(10.0, decade);
    line(x_of(milliseconds), kTop, x_of(milliseconds), kTop + kHeight);
    const std::string label = milliseconds >= 1000 ? fixed(milliseconds / 1000, 0) + " s"
                                                   : fixed(milliseconds, milliseconds < 1 ? 1 : 0) + " ms";
    out += text_at(x_of(milliseconds), kTop + kHeight + 18, "text-anchor=\"middle\" fill=\"#666666\"", label);
  }
  for (int percent = 0; percent <= 100; percent += 25) {
    line(kLeft, y_of(percent / 100.0), kLeft + kWidth, y_of(percent / 100.0));
    out += text_at(kLeft - 8, y_of(percent / 100.0) + 4, "text-anchor=\"end\" fill=\"#666666\"",
                   std::to_string(percent) + " %");
  }
  return out;
}

std::string curve(std::vector<double> seconds, const char* colour) {
  if (seconds.empty()) return {};
  std::sort(seconds.begin(), seconds.end());
  std::string points;
  const std::size_t step = std::max<std::size_t>(seconds.size() / 400, 1);
  for (std::size_t i = 0; i < seconds.size(); i += step) {
    const double fraction = static_cast<double>(i + 1) / static_cast<double>(seconds.size());
    points += number(x_of(seconds[i] * 1000)) + "," + number(y_of(fraction)) + " ";
  }
  points += number(x_of(seconds.back() * 1000)) + "," + number(y_of(1.0));
  return "<polyline fill=\"none\" stroke-width=\"2\" stroke=\"" + std::string(colour) + "\" points=\"" + points +
         "\"/>\n";
}

std::vector<std::string> latency_row(const std::string& name, const std::vector<double>& seconds) {
  double sum = 0.0;
  for (const double value : seconds) sum += value;
  const double mean = seconds.empty() ? 0.0 : sum / static_cast<double>(seconds.size());
  std::vector<std::string> row = {name, std::to_string(seconds.size()), fixed(mean * 1000, 2)};
  for (const double fraction : {0.5, 0.9, 0.95, 0.99, 1.0})
    row.push_back(fixed(percentile(seconds, fraction) * 1000, 2));
  return row;
}

}  // namespace

double percentile(std::vector<double> values, double fraction) {
  if (values.empty()) return 0.0;
  std::sort(values.begin(), values.end());
  const double rank = std::ceil(fraction * static_cast<double>(values.size()));
  return values[static_cast<std::size_t>(std::clamp(rank - 1.0, 0.0, static_cast<double>(values.size() - 1)))];
}

Table latency_table(const ServedTrace& served) {
  Table out;
  out.header = {"latency (ms)", "count", "mean", "p50", "p90", "p95", "p99", "max"};
  out.rows.push_back(latency_row("first token", served.first_token_seconds));
  out.rows.push_back(latency_row("between tokens", served.inter_token_seconds));
  out.rows.push_back(latency_row("whole request", served.request_seconds));
  return out;
}

std::string throughput_line(const ServedTrace& served) {
  const double seconds = std::max(served.seconds, 1e-9);
  const auto rate = [seconds](std::int64_t count) { return short_number(static_cast<double>(count) / seconds); };
  return std::to_string(served.requests) + " requests in " + fixed(served.seconds, 2) + " s: " + rate(served.requests) +
         " requests/s, " + rate(served.stats.prompt_tokens + served.stats.prefix_hit_tokens) + " prompt tokens/s (" +
         std::to_string(served.stats.prefix_hit_tokens) + " of them found in the cache), " +
         rate(served.stats.generated_tokens) + " generated tokens/s";
}

std::string latency_svg(const ServedTrace& served) {
  std::string out =
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"740\" height=\"430\" viewBox=\"0 0 740 430\" "
      "font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n";
  out += text_at(16, 26, "font-size=\"16\" font-weight=\"bold\" fill=\"#222222\"", served.title);
  out += text_at(16, 46, "fill=\"#555555\"", throughput_line(served));
  out += grid() + curve(served.first_token_seconds, kFirstColour) + curve(served.inter_token_seconds, kGapColour);
  out += text_at(kLeft, kTop + kHeight + 44, "font-weight=\"bold\" fill=\"" + std::string(kFirstColour) + "\"",
                 "time to first token");
  out += text_at(kLeft + 170, kTop + kHeight + 44, "font-weight=\"bold\" fill=\"" + std::string(kGapColour) + "\"",
                 "time between tokens");
  return out + "</svg>\n";
}

}  // namespace quire::cli
