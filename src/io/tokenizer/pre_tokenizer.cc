// The pre-tokenizers of tokenizer.json.
#include "io/tokenizer/pre_tokenizer.h"

#include <utility>

#include "io/tokenizer/byte_level.h"
#include "io/tokenizer/regex.h"
#include "io/tokenizer/unicode.h"

namespace quire::tokenizer {
namespace {

constexpr int kDeepestPreTokenizer = 8;
constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// A run of the text that a pattern matched, or that lies between two matches.
struct Run {
  std::string_view text;
  bool is_match = false;
};

enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

Result<Behavior> behavior_field(const Json& json, std::string_view where) {
  QUIRE_ASSIGN_OR_RETURN(const std::string name, string_field(json, "behavior", "Isolated", where));
  if (name == "Removed") return Behavior::kRemoved;
  if (name == "Isolated") return Behavior::kIsolated;
  if (name == "MergedWithPrevious") return Behavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return Behavior::kMergedWithNext;
  if (name == "Contiguous") return Behavior::kContiguous;
  return data_loss(std::string(where) +
                   ".behavior: want Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous, got '" + name +
                   "'");
}

// Appends the pieces that the runs of one text give.
void join_runs(const std::vector<Run>& runs, Behavior behavior, Pieces& out) {
  std::string current;
  bool current_is_match = false;
  const auto flush = [&] {
    if (!current.empty()) out.push_back(std::move(current));
    current.clear();
  };
  for (const Run& run : runs) {
    if (run.text.empty()) continue;
    const bool starts_piece = [&] {
      switch (behavior) {
        case Behavior::kRemoved:
        case Behavior::kIsolated:
          return true;
        case Behavior::kMergedWithPrevious:
          return !run.is_match || current_is_match;
        case Behavior::kMergedWithNext:
          return run.is_match || !current_is_match;
        case Behavior::kContiguous:
          return run.is_match != current_is_match;
      }
      return true;
    }();
    if (starts_piece) flush();
    if (behavior == Behavior::kRemoved && run.is_match) continue;
    current += run.text;
    current_is_match = run.is_match;
  }
  flush();
}

std::vector<Run> runs_of(std::string_view text, const std::vector<std::pair<std::size_t, std::size_t>>& matches,
                         bool invert) {
  std::vector<Run> runs;
  std::size_t offset = 0;
  for (const auto& [begin, end] : matches) {
    runs.push_back({text.substr(offset, begin - offset), invert});
    runs.push_back({text.substr(begin, end - begin), !invert});
    offset = end;
  }
  runs.push_back({text.substr(offset), invert});
  return runs;
}

// Splits by a test on single characters.
template <class Test>
PreTokenizer split_characters(Test test, Behavior behavior) {
  return [test, behavior](const Pieces& pieces) -> Result<Pieces> {
    Pieces out;
    for (const std::string& piece : pieces) {
      std::vector<Run> runs;
      std::size_t plain = 0;
      for (std::size_t offset = 0; offset < piece.size();) {
        const std::size_t start = offset;
        if (!test(next_char(piece, offset))) continue;
        runs.push_back({std::string_view(piece).substr(plain, start - plain), false});
        runs.push_back({std::string_view(piece).substr(start, offset - start), true});
        plain = offset;
      }
      runs.push_back({std::string_view(piece).substr(plain), false});
      join_runs(runs, behavior, out);
    }
    return out;
  };
}

PreTokenizer split_regex(Regex regex, Behavior behavior, bool invert) {
  return [regex = std::move(regex), behavior, invert](const Pieces& pieces) -> Result<Pieces> {
    Pieces out;
    for (const std::string& piece : pieces) {
      QUIRE_ASSIGN_OR_RETURN(const auto matches, regex.find_all(piece));
      join_runs(runs_of(piece, matches, invert), behavior, out);
    }
    return out;
  };
}

std::string escape_literal(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (std::string_view(R"(\^$.|?*+()[]{})").find(c) != std::string_view::npos) out += '\\';
    out += c;
  }
  return out;
}

Result<PreTokenizer> make_split(const Json& json, std::string_view where) {
  QUIRE_ASSIGN_OR_RETURN(const PatternField pattern, pattern_field(json, where));
  QUIRE_ASSIGN_OR_RETURN(const Behavior behavior, behavior_field(json, where));
  QUIRE_ASSIGN_OR_RETURN(const bool invert, bool_field(json, "invert", false, where));
  const std::string text = pattern.is_regex ? pattern.text : escape_literal(pattern.text);
  QUIRE_ASSIGN_OR_RETURN(Regex regex, Regex::compile(text, std::string(where) + ".pattern"));
  return split_regex(std::move(regex), behavior, invert);
}

PreTokenizer prefix_space() {
  return [](Pieces pieces) -> Result<Pieces> {
    for (std::string& piece : pieces) {
      if (!piece.starts_with(' ')) piece.insert(0, 1, ' ');
    }
    return pieces;
  };
}

PreTokenizer in_order(std::vector<PreTokenizer> steps) {
  return [steps = std::move(steps)](Pieces pieces) -> Result<Pieces> {
    for (const PreTokenizer& step : steps) {
      QUIRE_ASSIGN_OR_RETURN(pieces, step(std::move(pieces)));
    }
    return pieces;
  };
}

Result<PreTokenizer> make_byte_level(const Json& json, std::string_view where) {
  QUIRE_ASSIGN_OR_RETURN(const bool add_prefix_space, bool_field(json, "add_prefix_space", true, where));
  QUIRE_ASSIGN_OR_RETURN(const bool use_regex, bool_field(json, "use_regex", true, where));
  std::vector<PreTokenizer> steps;
  if (add_prefix_space) steps.push_back(prefix_space());
  if (use_regex) {
    QUIRE_ASSIGN_OR_RETURN(Regex regex, Regex::compile(kGpt2Pattern, where));
    steps.push_back(split_regex(std::move(regex), Behavior::kIsolated, false));
  }
  steps.emplace_back([](Pieces pieces) -> Result<Pieces> {
    for (std::string& piece : pieces) piece = bytes_to_alphabet(piece);
    return pieces;
  });
  return in_order(std::move(steps));
}

Result<PreTokenizer> make_pre_tokenizer_sequence(const Json& json, std::string_view where, Growth& growth, int depth) {
  const auto parts = json.find("pretokenizers");
  if (parts == json.end() || !parts->is_array()) return data_loss(std::string(where) + ".pretokenizers: want an array");
  std::vector<PreTokenizer> steps;
  for (const Json& part : *parts) {
    QUIRE_ASSIGN_OR_RETURN(PreTokenizer step,
                           make_pre_tokenizer(part, std::string(where) + ".pretokenizers", growth, depth + 1));
    steps.push_back(std::move(step));
  }
  return in_order(std::move(steps));
}

}  // namespace

Result<PreTokenizer> make_pre_tokenizer(const Json& json, std::string_view where, Growth& growth, int depth) {
  if (json.is_null()) return PreTokenizer([](Pieces pieces) -> Result<Pieces> { return pieces; });
  if (depth > kDeepestPreTokenizer)
    return data_loss(std::string(where) + ": want at most " + std::to_string(kDeepestPreTokenizer) +
                     " nested sequences");
  QUIRE_ASSIGN_OR_RETURN(const std::string type, type_of(json, where));
  if (type == "Sequence") return make_pre_tokenizer_sequence(json, where, growth, depth);
  if (type == "ByteLevel") {
    QUIRE_RETURN_IF_ERROR(growth.add(2.0, where));  // each byte becomes a character of at most two
    return make_byte_level(json, where);
  }
  if (type == "Split") return make_split(json, where);
  if (type == "BertPreTokenizer") {
    return in_order(
        {split_characters(is_whitespace, Behavior::kRemoved), split_characters(is_punctuation, Behavior::kIsolated)});
  }
  if (type == "WhitespaceSplit") return split_characters(is_whitespace, Behavior::kRemoved);
  if (type == "Whitespace") {
    QUIRE_ASSIGN_OR_RETURN(Regex regex, Regex::compile(R"(\w+|[^\w\s]+)", where));
    return split_regex(std::move(regex), Behavior::kRemoved, true);
  }
  if (type == "Digits") {
    QUIRE_ASSIGN_OR_RETURN(const bool individual, bool_field(json, "individual_digits", false, where));
    return split_characters(is_numeric, individual ? Behavior::kIsolated : Behavior::kContiguous);
  }
  if (type == "Punctuation") {
    QUIRE_ASSIGN_OR_RETURN(const Behavior behavior, behavior_field(json, where));
    return split_characters(is_punctuation, behavior);
  }
  return unsupported(std::string(where) +
                     ".type: want Sequence, ByteLevel, Split, BertPreTokenizer, Whitespace, "
                     "WhitespaceSplit, Digits or Punctuation, got '" +
                     type + "'");
}

}  // namespace quire::tokenizer
