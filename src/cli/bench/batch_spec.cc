// Parsing and printing of batch specs.
#include "cli/bench/batch_spec.h"

#include <array>
#include <charconv>
#include <optional>
#include <utility>

#include "cli/table.h"

namespace quire::cli {
namespace {

constexpr std::int64_t kMaxTokens = std::int64_t{1} << 24;
constexpr std::int64_t kMaxRequests = 65536;

// Takes a decimal number from the front of `text`; nothing if there is none or it is too large.
std::optional<std::int64_t> take_number(std::string_view& text) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || value < 0 || value > kMaxTokens) return std::nullopt;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return value;
}

bool take_char(std::string_view& text, char wanted) {
  if (!text.starts_with(wanted)) return false;
  text.remove_prefix(1);
  return true;
}

// A number after `letter`, perhaps with a k behind it.
std::optional<std::int64_t> take_tokens(std::string_view& text, char letter) {
  if (!take_char(text, letter)) return std::nullopt;
  const auto number = take_number(text);
  if (!number) return std::nullopt;
  return take_char(text, 'k') ? *number * 1024 : *number;
}

Status append_segment(std::string_view segment, std::vector<BatchRequest>& out) {
  const auto wrong = [segment](const std::string& what) {
    return invalid_argument("batch spec: segment \"" + std::string(segment) + "\": " + what);
  };
  std::string_view rest = segment;
  const std::int64_t count = rest.starts_with('q') ? 1 : take_number(rest).value_or(-1);
  const std::optional<std::int64_t> query_len = take_tokens(rest, 'q');
  if (count < 0 || !query_len) return wrong("want [COUNT]qQ[k][sS[k]], for instance 8q1s4k");
  std::optional<std::int64_t> seq_len = query_len;
  if (!rest.empty()) seq_len = take_tokens(rest, 's');
  if (!seq_len || !rest.empty()) return wrong("want [COUNT]qQ[k][sS[k]], for instance 8q1s4k");
  if (count < 1 || *query_len < 1 || *seq_len < *query_len || *seq_len > kMaxTokens) {
    return wrong("want COUNT >= 1 and 1 <= Q <= S <= 2^24");
  }
  if (static_cast<std::int64_t>(out.size()) + count > kMaxRequests) return wrong("more than 65536 requests");
  const BatchRequest request{static_cast<std::int32_t>(*query_len), static_cast<std::int32_t>(*seq_len)};
  out.insert(out.end(), static_cast<std::size_t>(count), request);
  return {};
}

std::string tokens_string(std::int32_t tokens) {
  return tokens % 1024 == 0 ? std::to_string(tokens / 1024) + "k" : std::to_string(tokens);
}

// All of COUNT x length, as "32q1s4k" or "32q4k".
std::vector<std::string> grid(const std::vector<int>& counts, const std::vector<std::string>& lengths,
                              const std::string& before_length) {
  std::vector<std::string> out;
  for (const int count : counts) {
    for (const std::string& length : lengths) {
      out.push_back((count == 1 ? "" : std::to_string(count)) + before_length + length);
    }
  }
  return out;
}

using BatchSets = std::vector<std::pair<std::string, std::vector<std::string>>>;

const BatchSets& batch_sets() {
  static const std::vector<std::string> kLengths = {"512", "1k", "2k", "4k", "8k", "16k", "32k"};
  static const BatchSets kSets = {
      {"standard_attention",
       {"q512", "q2k", "q4k", "q8k", "8q1s1k", "16q1s2k", "32q1s1k", "64q1s4k", "2q2k_8q1s1k", "4q1k_16q1s2k",
        "2q4k_32q1s1k", "q1ks2k", "2q1ks4k"}},
      {"standard_decode", grid({1, 2, 4, 8, 16, 32, 64, 128, 256}, kLengths, "q1s")},
      {"standard_prefill", grid({1, 2, 4, 8, 16}, kLengths, "q")},
      {"production_mix",
       {"q2k", "q1s512", "q1s4k", "32q1s4k", "2q1k_16q1s2k", "16q4s4k", "4q512s8k", "q257_7q1s1057_3q4s2051_2q129s4093",
        "q769_3q1s6143_2q8s3073_q257s8191"}},
      {"speculative_decode",
       {"q2s1k", "q4s1k", "q8s1k", "q16s1k", "q4s2k", "q4s4k", "q8s2k", "q8s4k", "32q4s1k", "16q4s1k_16q1s1k",
        "8q8s2k_24q1s2k", "2q1k_16q4s1k_16q1s1k", "4q2k_32q4s2k_32q1s2k", "64q4s1k", "32q8s2k", "16q16s4k"}},
  };
  return kSets;
}

}  // namespace

Result<std::vector<BatchRequest>> parse_batch_spec(std::string_view text) {
  std::vector<BatchRequest> out;
  for (std::string_view rest = text;;) {
    const std::size_t end = rest.find('_');
    QUIRE_RETURN_IF_ERROR(append_segment(rest.substr(0, end), out));
    if (end == std::string_view::npos) return out;
    rest.remove_prefix(end + 1);
  }
}

std::string batch_spec_string(std::span<const BatchRequest> batch) {
  std::string out;
  for (std::size_t i = 0; i < batch.size();) {
    std::size_t same = i;
    while (same < batch.size() && batch[same] == batch[i]) ++same;
    if (!out.empty()) out += '_';
    if (same - i > 1) out += std::to_string(same - i);
    out += "q" + tokens_string(batch[i].query_len);
    if (batch[i].seq_len != batch[i].query_len) out += "s" + tokens_string(batch[i].seq_len);
    i = same;
  }
  return out;
}

Result<std::vector<std::string>> batch_set(std::string_view name) {
  std::vector<std::string> names;
  for (const auto& [known, specs] : batch_sets()) {
    if (known == name) return specs;
    names.push_back(known);
  }
  return invalid_argument("set: want one of " + join(names, ", ") + ", got " + std::string(name));
}

}  // namespace quire::cli
