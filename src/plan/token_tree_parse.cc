// TokenTree::parse: reads the literal list of tuples in which speculative decoding's trees are configured.
#include <limits>
#include <string>
#include <utility>

#include "quire/tree.h"

namespace quire {
namespace {

constexpr std::size_t kMaxTextBytes = std::size_t{1} << 20;

// A cursor over the text. It has two levels of brackets and so needs no recursion.
class ChoiceReader {
 public:
  explicit ChoiceReader(std::string_view text) : text_(text) {}

  // list = "[" [tuple {"," tuple} [","]] "]"
  Result<std::vector<TreePath>> read() {
    std::vector<TreePath> paths;
    QUIRE_RETURN_IF_ERROR(expect('['));
    while (!take(']')) {
      if (paths.size() + 1 >= static_cast<std::size_t>(kMaxTreeSize)) {
        return resource_exhausted("tree choices: want at most " + std::to_string(kMaxTreeSize - 1) +
                                  " paths, got more");
      }
      QUIRE_ASSIGN_OR_RETURN(TreePath path, read_path());
      paths.push_back(std::move(path));
      if (take(',')) continue;
      QUIRE_RETURN_IF_ERROR(expect(']'));
      break;
    }
    if (peek() != kEnd) return error("the end of the text");
    return paths;
  }

 private:
  static constexpr int kEnd = -1;

  // tuple = "(" [int {"," int} [","]] ")"
  Result<TreePath> read_path() {
    TreePath path;
    QUIRE_RETURN_IF_ERROR(expect('('));
    while (!take(')')) {
      if (path.size() >= static_cast<std::size_t>(kMaxTreeSize)) {
        return resource_exhausted("tree choices: column " + column() + ": want paths of at most " +
                                  std::to_string(kMaxTreeSize - 1) + " entries, got more");
      }
      QUIRE_ASSIGN_OR_RETURN(const std::int32_t entry, read_int());
      path.push_back(entry);
      if (take(',')) continue;
      QUIRE_RETURN_IF_ERROR(expect(')'));
      break;
    }
    return path;
  }

  Result<std::int32_t> read_int() {
    const bool negative = take('-');
    if (peek() < '0' || peek() > '9') return error("a number");
    std::int64_t value = 0;
    for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
      value = value * 10 + (text_[at_] - '0');
      if (value > std::numeric_limits<std::int32_t>::max()) return error("a number below 2^31");
    }
    return static_cast<std::int32_t>(negative ? -value : value);
  }

  // The next character that is not blank.
  int peek() {
    while (at_ < text_.size() && (text_[at_] == ' ' || (text_[at_] >= '\t' && text_[at_] <= '\r'))) ++at_;
    return at_ < text_.size() ? static_cast<unsigned char>(text_[at_]) : kEnd;
  }

  bool take(char wanted) {
    if (peek() != wanted) return false;
    ++at_;
    return true;
  }

  Status expect(char wanted) {
    if (take(wanted)) return {};
    return error(std::string("'") + wanted + "'");
  }

  std::string column() const { return std::to_string(at_ + 1); }

  Status error(const std::string& wanted) {
    const int next = peek();
    std::string got = "the end";
    if (next >= ' ' && next <= '~') got = std::string("'") + static_cast<char>(next) + "'";
    if (next != kEnd && (next < ' ' || next > '~')) got = "byte " + std::to_string(next);
    return invalid_argument("tree choices: column " + column() + ": want " + wanted + ", got " + got);
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

}  // namespace

Result<TokenTree> TokenTree::parse(std::string_view text) {
  if (text.size() > kMaxTextBytes) {
    return resource_exhausted("tree choices: want a text of at most " + std::to_string(kMaxTextBytes) + " bytes, got " +
                              std::to_string(text.size()));
  }
  QUIRE_ASSIGN_OR_RETURN(const std::vector<TreePath> paths, ChoiceReader(text).read());
  return from_choices(paths);
}

}  // namespace quire
