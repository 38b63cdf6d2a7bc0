// Reading of request traces, and the draw of batches from them.
#include "io/trace.h"

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>

#include "io/json_text.h"
#include "io/mapped_file.h"

namespace quire {
namespace {

constexpr std::int64_t kMaxTokens = std::int64_t{1} << 24;

Status line_error(const std::string& name, std::int64_t line, const std::string& what) {
  return data_loss(name + ":" + std::to_string(line) + ": " + what);
}

std::string_view take_line(std::string_view& text) {
  const std::size_t end = std::min(text.find('\n'), text.size());
  std::string_view line = text.substr(0, end);
  text.remove_prefix(std::min(end + 1, text.size()));
  if (line.ends_with('\r')) line.remove_suffix(1);
  return line;
}

std::vector<std::string_view> split_cells(std::string_view line) {
  std::vector<std::string_view> cells;
  for (;;) {
    const std::size_t comma = line.find(',');
    cells.push_back(line.substr(0, comma));
    if (comma == std::string_view::npos) return cells;
    line.remove_prefix(comma + 1);
  }
}

std::optional<std::int32_t> parse_tokens(std::string_view text) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0 || value > kMaxTokens) return std::nullopt;
  return static_cast<std::int32_t>(value);
}

// Days since 1970-01-01 of a date of the Gregorian calendar: years begin in March, so that leap days come last.
std::int64_t days_of(std::int64_t year, std::int64_t month, std::int64_t day) {
  year -= month <= 2 ? 1 : 0;
  const std::int64_t era = year / 400;
  const std::int64_t year_of_era = year % 400;
  const std::int64_t day_of_year = (153 * (month > 2 ? month - 3 : month + 9) + 2) / 5 + day - 1;
  return era * 146097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719468;
}

// Seconds of "2023-11-16 18:17:03.9799600".
std::optional<double> parse_time(std::string_view text) {
  constexpr std::string_view kForm = "dddd-dd-dd dd:dd:dd";
  if (text.size() < kForm.size()) return std::nullopt;
  for (std::size_t i = 0; i < kForm.size(); ++i) {
    const bool digit = text[i] >= '0' && text[i] <= '9';
    if (kForm[i] == 'd' ? !digit : text[i] != kForm[i]) return std::nullopt;
  }
  const auto number = [text](std::size_t at, std::size_t count) {
    std::int64_t value = 0;
    for (std::size_t i = at; i < at + count; ++i) value = value * 10 + (text[i] - '0');
    return value;
  };
  double fraction = 0.0;
  const std::string_view rest = text.substr(kForm.size());
  if (!rest.empty()) {
    if (rest.front() != '.' || rest.find_first_not_of("0123456789", 1) != std::string_view::npos) return std::nullopt;
    double unit = 0.1;
    for (std::size_t i = 1; i < rest.size(); ++i, unit /= 10.0) fraction += unit * (rest[i] - '0');
  }
  const std::int64_t days = days_of(number(0, 4), number(5, 2), number(8, 2));
  return static_cast<double>(days * 86400 + number(11, 2) * 3600 + number(14, 2) * 60 + number(17, 2)) + fraction;
}

// Times count from the first request.
void rebase_times(std::vector<TraceRequest>& trace) {
  if (trace.empty()) return;
  const double first = trace.front().arrival_seconds;
  for (TraceRequest& request : trace) request.arrival_seconds -= first;
}

Result<std::vector<TraceRequest>> parse_csv(std::string_view text, const std::string& name) {
  const std::vector<std::string_view> header = split_cells(take_line(text));
  const auto column = [&header](std::string_view wanted) {
    return static_cast<std::size_t>(std::find(header.begin(), header.end(), wanted) - header.begin());
  };
  const std::size_t context = column("ContextTokens");
  const std::size_t generated = column("GeneratedTokens");
  const std::size_t time = column("TIMESTAMP");
  if (context == header.size() || generated == header.size()) {
    return line_error(name, 1, "want the columns ContextTokens and GeneratedTokens, or JSON lines");
  }
  std::vector<TraceRequest> out;
  for (std::int64_t line = 2; !text.empty(); ++line) {
    const std::string_view content = take_line(text);
    if (content.empty()) continue;
    const std::vector<std::string_view> cells = split_cells(content);
    if (cells.size() != header.size()) {
      return line_error(name, line,
                        "want " + std::to_string(header.size()) + " cells, got " + std::to_string(cells.size()));
    }
    const auto prompt = parse_tokens(cells[context]);
    const auto answer = parse_tokens(cells[generated]);
    if (!prompt || !answer) return line_error(name, line, "want token counts in [0, 2^24]");
    out.push_back({.context_tokens = *prompt, .generated_tokens = *answer, .hash_ids = {}});
    if (time == header.size()) continue;
    const auto arrival = parse_time(cells[time]);
    if (!arrival) return line_error(name, line, "TIMESTAMP: want YYYY-MM-DD HH:MM:SS.fraction");
    out.back().arrival_seconds = *arrival;
  }
  rebase_times(out);
  return out;
}

std::optional<std::int32_t> json_tokens(const nlohmann::json& record, const char* key) {
  const auto at = record.find(key);
  if (at == record.end() || !at->is_number_integer() || *at < 0 || *at > kMaxTokens) return std::nullopt;
  return at->get<std::int32_t>();
}

Result<std::vector<TraceRequest>> parse_json_lines(std::string_view text, const std::string& name) {
  std::vector<TraceRequest> out;
  for (std::int64_t line = 1; !text.empty(); ++line) {
    const std::string_view content = take_line(text);
    if (content.empty()) continue;
    const Result<nlohmann::json> parsed = parse_json(content);
    if (!parsed.ok()) return line_error(name, line, parsed.status().message());
    const nlohmann::json& record = *parsed;
    if (!record.is_object()) return line_error(name, line, "want a JSON object");
    const auto input = json_tokens(record, "input_length");
    const auto output = json_tokens(record, "output_length");
    if (!input || !output) return line_error(name, line, "want input_length and output_length in [0, 2^24]");
    TraceRequest& request = out.emplace_back();
    request.context_tokens = *input;
    request.generated_tokens = *output;
    const auto time = record.find("timestamp");
    if (time != record.end()) {
      if (!time->is_number()) return line_error(name, line, "timestamp: want milliseconds");
      request.arrival_seconds = time->get<double>() / 1000.0;
    }
    const auto ids = record.find("hash_ids");
    if (ids == record.end()) continue;
    if (!ids->is_array()) return line_error(name, line, "hash_ids: want an array of integers");
    for (const auto& id : *ids) {
      if (!id.is_number_integer()) return line_error(name, line, "hash_ids: want an array of integers");
      request.hash_ids.push_back(id.get<std::int64_t>());
    }
  }
  rebase_times(out);
  return out;
}

// Uniform in [0, bound), the same on every platform, unlike the standard's distributions.
std::int32_t uniform(std::mt19937_64& random, std::int32_t bound) {
  return static_cast<std::int32_t>(random() % static_cast<std::uint64_t>(std::max(bound, 1)));
}

}  // namespace

Result<std::vector<TraceRequest>> parse_trace(std::string_view text, const std::string& name) {
  try {
    return text.starts_with('{') ? parse_json_lines(text, name) : parse_csv(text, name);
  } catch (const std::exception& error) {
    return data_loss(name + ": " + error.what());
  }
}

Result<std::vector<TraceRequest>> read_trace(const std::string& path) {
  QUIRE_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::open(path));
  const auto bytes = file.bytes();
  return parse_trace({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path);
}

Result<std::vector<BatchRequest>> draw_batch(std::span<const TraceRequest> trace, const TraceDraw& draw) {
  if (draw.num_decodes < 0 || draw.num_prefills < 0 || draw.prefill_chunk_tokens < 0 || draw.max_seq_len < 0) {
    return invalid_argument("trace draw: want counts >= 0");
  }
  if (trace.empty()) return invalid_argument("trace: want at least one request, got none");
  std::mt19937_64 random(draw.seed);
  const auto pick = [&]() -> const TraceRequest& {
    return trace[static_cast<std::size_t>(uniform(random, static_cast<std::int32_t>(trace.size())))];
  };
  const auto cut = [&draw](std::int32_t tokens) {
    return std::max(1, draw.max_seq_len > 0 ? std::min(tokens, draw.max_seq_len) : tokens);
  };
  std::vector<BatchRequest> out;
  for (std::int32_t i = 0; i < draw.num_decodes; ++i) {
    const TraceRequest& request = pick();
    const std::int32_t position = request.context_tokens + uniform(random, request.generated_tokens);
    out.push_back({.query_len = 1, .seq_len = cut(position + 1)});
  }
  for (std::int32_t i = 0; i < draw.num_prefills; ++i) {
    const std::int32_t prompt = cut(pick().context_tokens);
    const std::int32_t chunk = draw.prefill_chunk_tokens > 0 ? draw.prefill_chunk_tokens : prompt;
    const std::int32_t begin = uniform(random, (prompt + chunk - 1) / chunk) * chunk;
    const std::int32_t end = std::min(prompt, begin + chunk);
    out.push_back({.query_len = end - begin, .seq_len = end});
  }
  return out;
}

}  // namespace quire
