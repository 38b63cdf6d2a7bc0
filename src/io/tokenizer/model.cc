// Reading of a tokenizer's vocabulary, and the WordPiece model.
#include "io/tokenizer/model.h"

#include <algorithm>
#include <utility>

#include "io/tokenizer/unicode.h"

namespace quire::tokenizer {
namespace {

constexpr std::int64_t kLargestId = 1 << 24;

Result<Vocabulary> read_vocabulary(const Json& json, std::string_view where) {
  const auto found = json.find("vocab");
  if (found == json.end() || !found->is_object())
    return data_loss(std::string(where) + ".vocab: want an object of token: id");
  Vocabulary vocabulary;
  vocabulary.reserve(found->size());
  for (const auto& [token, id] : found->items()) {
    if (!id.is_number_integer() || id.get<std::int64_t>() < 0 || id.get<std::int64_t>() > kLargestId) {
      return data_loss(std::string(where) + ".vocab['" + token + "']: want an id in [0, 2^24], got " + id.dump());
    }
    vocabulary.emplace(token, id.get<std::int32_t>());
  }
  return vocabulary;
}

// Longest match first, from the left; words that cannot be covered become the unknown token.
class WordPiece : public Model {
 public:
  WordPiece(Vocabulary vocabulary, std::int32_t unknown, std::string prefix, std::size_t longest)
      : Model(std::move(vocabulary)), unknown_(unknown), prefix_(std::move(prefix)), longest_(longest) {
    for (const auto& [token, id] : vocabulary_) longest_entry_ = std::max(longest_entry_, token.size());
  }

  void tokenize(std::string_view piece, std::vector<std::int32_t>& ids) const override {
    std::vector<std::size_t> bounds{0};
    for (std::size_t offset = 0; offset < piece.size(); bounds.push_back(offset)) next_char(piece, offset);
    const std::size_t count = bounds.size() - 1;
    if (count > longest_) return ids.push_back(unknown_);
    std::vector<std::int32_t> found;
    for (std::size_t begin = 0; begin < count;) {
      std::size_t end = count;
      for (; end > begin; --end) {
        if (bounds[end] - bounds[begin] > longest_entry_) continue;
        std::string part = begin > 0 ? prefix_ : "";
        part += piece.substr(bounds[begin], bounds[end] - bounds[begin]);
        const auto entry = vocabulary_.find(part);
        if (entry == vocabulary_.end()) continue;
        found.push_back(entry->second);
        break;
      }
      if (end == begin) return ids.push_back(unknown_);
      begin = end;
    }
    ids.insert(ids.end(), found.begin(), found.end());
  }

 private:
  std::int32_t unknown_;
  std::string prefix_;
  std::size_t longest_;
  std::size_t longest_entry_ = 0;  // bytes
};

}  // namespace

Result<std::unique_ptr<Model>> make_word_piece(const Json& json, Vocabulary vocabulary, std::string_view where) {
  QUIRE_ASSIGN_OR_RETURN(const std::string unknown, string_field(json, "unk_token", "[UNK]", where));
  QUIRE_ASSIGN_OR_RETURN(const std::string prefix, string_field(json, "continuing_subword_prefix", "##", where));
  QUIRE_ASSIGN_OR_RETURN(const std::int64_t longest, integer_field(json, "max_input_chars_per_word", 100, where));
  const auto entry = vocabulary.find(unknown);
  if (entry == vocabulary.end()) {
    return data_loss(std::string(where) + ".unk_token: want a token of the vocabulary, got '" + unknown + "'");
  }
  const std::int32_t id = entry->second;
  return std::unique_ptr<Model>(new WordPiece(std::move(vocabulary), id, prefix,
                                              static_cast<std::size_t>(std::clamp<std::int64_t>(longest, 0, 10000))));
}

Result<std::unique_ptr<Model>> make_model(const Json& json, std::string_view where) {
  QUIRE_ASSIGN_OR_RETURN(std::string type, type_of(json, where));
  QUIRE_ASSIGN_OR_RETURN(Vocabulary vocabulary, read_vocabulary(json, where));
  if (type.empty() && json.contains("merges")) type = "BPE";  // old files do not say
  if (type == "BPE") return make_bpe(json, std::move(vocabulary), where);
  if (type == "WordPiece") return make_word_piece(json, std::move(vocabulary), where);
  return unsupported(std::string(where) + ".type: want BPE or WordPiece, got '" + type + "'");
}

}  // namespace quire::tokenizer
