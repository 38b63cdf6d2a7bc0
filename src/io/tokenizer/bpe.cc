// The byte pair encoding model: merges the adjacent pair of the lowest rank until none is left.
#include <algorithm>
#include <array>
#include <queue>
#include <utility>

#include "io/tokenizer/model.h"
#include "io/tokenizer/unicode.h"

namespace quire::tokenizer {
namespace {

struct Merge {
  std::int32_t rank = 0;
  std::int32_t id = 0;
};
using PairKey = std::uint64_t;
PairKey pair_key(std::int32_t left, std::int32_t right) {
  return static_cast<PairKey>(static_cast<std::uint32_t>(left)) << 32 | static_cast<std::uint32_t>(right);
}
using Merges = std::unordered_map<PairKey, Merge>;

struct BpeOptions {
  std::int32_t unknown = -1;
  bool fuse_unknown = false;
  bool byte_fallback = false;
  bool ignore_merges = false;
  std::array<std::int32_t, 256> byte_ids{};  // with byte_fallback
};

// A doubly linked list of symbols inside a vector.
struct Symbol {
  std::int32_t id = 0;
  std::int32_t previous = -1;
  std::int32_t next = -1;
};

struct Candidate {
  std::int32_t rank = 0;
  std::int32_t position = 0;
  std::int32_t id = 0;
  PairKey pair = 0;
  // The queue's top is the lowest rank, then the leftmost.
  bool operator<(const Candidate& other) const {
    return rank != other.rank ? rank > other.rank : position > other.position;
  }
};

class Bpe : public Model {
 public:
  Bpe(Vocabulary vocabulary, Merges merges, const BpeOptions& options)
      : Model(std::move(vocabulary)), merges_(std::move(merges)), options_(options) {}

  void tokenize(std::string_view piece, std::vector<std::int32_t>& ids) const override {
    if (options_.ignore_merges) {
      if (const auto whole = vocabulary_.find(piece); whole != vocabulary_.end()) return ids.push_back(whole->second);
    }
    std::vector<Symbol> symbols = split(piece);
    merge(symbols);
    for (std::int32_t i = symbols.empty() ? -1 : 0; i >= 0; i = symbols[static_cast<std::size_t>(i)].next) {
      ids.push_back(symbols[static_cast<std::size_t>(i)].id);
    }
  }

 private:
  // One symbol a character; characters without a token become bytes, the unknown token or nothing.
  std::vector<Symbol> split(std::string_view piece) const {
    std::vector<std::int32_t> ids;
    bool after_unknown = false;
    for (std::size_t offset = 0; offset < piece.size();) {
      const std::size_t begin = offset;
      next_char(piece, offset);
      const std::string_view character = piece.substr(begin, offset - begin);
      const auto entry = vocabulary_.find(character);
      const bool is_known = entry != vocabulary_.end();
      if (is_known) {
        ids.push_back(entry->second);
      } else if (options_.byte_fallback) {
        for (const char byte : character) ids.push_back(options_.byte_ids[static_cast<unsigned char>(byte)]);
      } else if (options_.unknown >= 0 && !(options_.fuse_unknown && after_unknown)) {
        ids.push_back(options_.unknown);
      }
      after_unknown = !is_known;
    }
    std::vector<Symbol> symbols(ids.size());
    const auto count = static_cast<std::int32_t>(ids.size());
    for (std::int32_t i = 0; i < count; ++i) {
      symbols[static_cast<std::size_t>(i)] = {ids[static_cast<std::size_t>(i)], i - 1, i + 1 < count ? i + 1 : -1};
    }
    return symbols;
  }

  void merge(std::vector<Symbol>& symbols) const {
    std::priority_queue<Candidate> queue;
    const auto at = [&](std::int32_t i) -> Symbol& { return symbols[static_cast<std::size_t>(i)]; };
    const auto propose = [&](std::int32_t left) {
      if (left < 0 || at(left).next < 0) return;
      const PairKey pair = pair_key(at(left).id, at(at(left).next).id);
      const auto found = merges_.find(pair);
      if (found != merges_.end()) queue.push({found->second.rank, left, found->second.id, pair});
    };
    for (std::int32_t i = 0; i + 1 < static_cast<std::int32_t>(symbols.size()); ++i) propose(i);
    while (!queue.empty()) {
      const Candidate best = queue.top();
      queue.pop();
      Symbol& left = at(best.position);
      // Symbols that were merged away have id -1; a pair that has changed since is stale.
      if (left.id < 0 || left.next < 0 || pair_key(left.id, at(left.next).id) != best.pair) continue;
      Symbol& right = at(left.next);
      left.id = best.id;
      left.next = right.next;
      right.id = -1;
      if (left.next >= 0) at(left.next).previous = best.position;
      propose(left.previous);
      propose(best.position);
    }
  }

  Merges merges_;
  BpeOptions options_;
};

// A merge is "left right" or ["left", "right"].
Result<std::pair<std::string, std::string>> read_merge(const Json& entry, const std::string& where) {
  if (entry.is_array() && entry.size() == 2 && entry[0].is_string() && entry[1].is_string()) {
    return std::pair(entry[0].get<std::string>(), entry[1].get<std::string>());
  }
  if (entry.is_string()) {
    const std::string text = entry.get<std::string>();
    const std::size_t space = text.find(' ');
    if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos) {
      return std::pair(text.substr(0, space), text.substr(space + 1));
    }
  }
  return data_loss(where + ": want 'left right' or ['left', 'right'], got " + entry.dump());
}

Result<Merges> read_merges(const Json& json, const Vocabulary& vocabulary, std::string_view where) {
  const auto found = json.find("merges");
  if (found == json.end() || !found->is_array()) return data_loss(std::string(where) + ".merges: want an array");
  Merges merges;
  std::int32_t rank = 0;
  for (const Json& entry : *found) {
    const std::string place = std::string(where) + ".merges[" + std::to_string(rank) + "]";
    QUIRE_ASSIGN_OR_RETURN(const auto parts, read_merge(entry, place));
    const auto left = vocabulary.find(parts.first);
    const auto right = vocabulary.find(parts.second);
    const auto merged = vocabulary.find(parts.first + parts.second);
    if (left == vocabulary.end() || right == vocabulary.end() || merged == vocabulary.end()) {
      return data_loss(place + ": want both parts and their join in the vocabulary, got " + entry.dump());
    }
    // A pair that comes again keeps its last rank, as in the files' own library.
    merges[pair_key(left->second, right->second)] = {rank, merged->second};
    ++rank;
  }
  return merges;
}

}  // namespace

Result<std::unique_ptr<Model>> make_bpe(const Json& json, Vocabulary vocabulary, std::string_view where) {
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    QUIRE_ASSIGN_OR_RETURN(const std::string affix, string_field(json, key, "", where));
    if (!affix.empty()) return unsupported(std::string(where) + "." + key + ": want none, got '" + affix + "'");
  }
  if (const auto dropout = json.find("dropout");
      dropout != json.end() && dropout->is_number() && dropout->get<double>() != 0.0) {
    return unsupported(std::string(where) + ".dropout: want none, got " + dropout->dump());
  }
  BpeOptions options;
  QUIRE_ASSIGN_OR_RETURN(options.fuse_unknown, bool_field(json, "fuse_unk", false, where));
  QUIRE_ASSIGN_OR_RETURN(options.byte_fallback, bool_field(json, "byte_fallback", false, where));
  QUIRE_ASSIGN_OR_RETURN(options.ignore_merges, bool_field(json, "ignore_merges", false, where));
  QUIRE_ASSIGN_OR_RETURN(const std::string unknown, string_field(json, "unk_token", "", where));
  if (!unknown.empty()) {
    const auto entry = vocabulary.find(unknown);
    if (entry == vocabulary.end()) {
      return data_loss(std::string(where) + ".unk_token: want a token of the vocabulary, got '" + unknown + "'");
    }
    options.unknown = entry->second;
  }
  for (std::size_t byte = 0; options.byte_fallback && byte < 256; ++byte) {
    const char* digits = "0123456789ABCDEF";
    const std::string token = {'<', '0', 'x', digits[byte / 16], digits[byte % 16], '>'};
    const auto entry = vocabulary.find(token);
    if (entry == vocabulary.end())
      return data_loss(std::string(where) + ".byte_fallback: want " + token + " in the vocabulary");
    options.byte_ids[byte] = entry->second;
  }
  QUIRE_ASSIGN_OR_RETURN(Merges merges, read_merges(json, vocabulary, where));
  return std::unique_ptr<Model>(new Bpe(std::move(vocabulary), std::move(merges), options));
}

}  // namespace quire::tokenizer
