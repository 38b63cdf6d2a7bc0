// TokenTree: validates choices or parents, sorts them breadth-first and derives depths and the ancestor mask.
#include "quire/tree.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

namespace quire {
namespace {

constexpr std::size_t kMaxChoices = static_cast<std::size_t>(kMaxTreeSize) - 1;

// "(0,)", "(0, 1)"; long paths are cut.
std::string path_text(std::span<const std::int32_t> path) {
  constexpr std::size_t kShown = 16;
  std::string text = "(";
  for (std::size_t i = 0; i < std::min(path.size(), kShown); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(path[i]);
  }
  if (path.size() > kShown) text += ", ...";
  return text + (path.size() == 1 ? ",)" : ")");
}

std::string path_error(std::span<const std::int32_t> path, const std::string& what) {
  return "tree choices: path " + path_text(path) + ": " + what;
}

bool breadth_first_less(const TreePath& a, const TreePath& b) {
  return a.size() != b.size() ? a.size() < b.size() : a < b;
}

Status check_count(std::size_t count) {
  if (count <= kMaxChoices) return {};
  return resource_exhausted("tree choices: want at most " + std::to_string(kMaxChoices) + " paths, got " +
                            std::to_string(count));
}

Status check_entries(const TreePath& path) {
  if (path.empty()) return invalid_argument(path_error(path, "want at least one entry, got none"));
  if (path.size() > kMaxChoices) {
    return resource_exhausted(path_error(
        path, "want at most " + std::to_string(kMaxChoices) + " entries, got " + std::to_string(path.size())));
  }
  for (std::int32_t entry : path) {
    if (entry < 0) return invalid_argument(path_error(path, "want entries >= 0, got " + std::to_string(entry)));
  }
  return {};
}

}  // namespace

Result<TokenTree> TokenTree::from_choices(std::span<const TreePath> choices) {
  QUIRE_RETURN_IF_ERROR(check_count(choices.size()));
  for (const TreePath& path : choices) QUIRE_RETURN_IF_ERROR(check_entries(path));
  TokenTree tree;
  tree.choices_.assign(choices.begin(), choices.end());
  std::sort(tree.choices_.begin(), tree.choices_.end(), breadth_first_less);
  tree.parents_.reserve(choices.size());
  for (std::size_t i = 0; i < tree.choices_.size(); ++i) {
    const TreePath& path = tree.choices_[i];
    if (i > 0 && path == tree.choices_[i - 1]) {
      return invalid_argument(path_error(path, "want every path once, got it twice"));
    }
    if (path.size() == 1) {
      tree.parents_.push_back(0);
      continue;
    }
    const TreePath parent(path.begin(), path.end() - 1);
    const auto end = tree.choices_.begin() + static_cast<std::ptrdiff_t>(i);
    const auto found = std::lower_bound(tree.choices_.begin(), end, parent, breadth_first_less);
    if (found == end || *found != parent) {
      return invalid_argument(path_error(path, "want its parent " + path_text(parent) + " in the tree, got none"));
    }
    tree.parents_.push_back(static_cast<std::int32_t>(found - tree.choices_.begin()) + 1);
  }
  tree.finish();
  return tree;
}

Result<TokenTree> TokenTree::chain(std::int32_t length) {
  if (length < 0 || length >= kMaxTreeSize) {
    return invalid_argument("length of the chain: want 0 to " + std::to_string(kMaxTreeSize - 1) + ", got " +
                            std::to_string(length));
  }
  std::vector<std::int32_t> parents(static_cast<std::size_t>(length));
  for (std::size_t i = 0; i < parents.size(); ++i) parents[i] = static_cast<std::int32_t>(i);
  return from_parents(parents);
}

Result<TokenTree> TokenTree::from_parents(std::span<const std::int32_t> parents) {
  QUIRE_RETURN_IF_ERROR(check_count(parents.size()));
  TokenTree tree;
  tree.choices_.reserve(parents.size());
  std::vector<std::int32_t> num_children(parents.size() + 1, 0);
  for (std::size_t i = 0; i < parents.size(); ++i) {
    const std::int32_t parent = parents[i];
    if (parent < 0 || static_cast<std::size_t>(parent) > i) {
      return invalid_argument("tree parents[" + std::to_string(i) + "]: want a node of 0 to " + std::to_string(i) +
                              ", got " + std::to_string(parent));
    }
    TreePath path = parent == 0 ? TreePath() : tree.choices_[static_cast<std::size_t>(parent) - 1];
    path.push_back(num_children[static_cast<std::size_t>(parent)]++);
    tree.choices_.push_back(std::move(path));
  }
  tree.parents_.assign(parents.begin(), parents.end());
  tree.finish();
  return tree;
}

void TokenTree::finish() {
  const std::size_t words = static_cast<std::size_t>(mask_words());
  depths_.assign(parents_.size() + 1, 0);
  depth_counts_.clear();
  mask_.assign(depths_.size() * words, 0);
  mask_[0] = 1;
  for (std::size_t node = 1; node < depths_.size(); ++node) {
    const std::size_t parent = static_cast<std::size_t>(parents_[node - 1]);
    depths_[node] = depths_[parent] + 1;
    const std::size_t level = static_cast<std::size_t>(depths_[parent]);
    if (level == depth_counts_.size()) depth_counts_.push_back(0);
    ++depth_counts_[level];
    std::copy_n(mask_.data() + parent * words, words, mask_.data() + node * words);
    mask_[node * words + node / 64] |= std::uint64_t{1} << (node % 64);
  }
}

std::vector<float> TokenTree::bias() const {
  const std::size_t nodes = depths_.size();
  const std::size_t words = static_cast<std::size_t>(mask_words());
  std::vector<float> out(nodes * nodes, -std::numeric_limits<float>::infinity());
  for (std::size_t row = 0; row < nodes; ++row) {
    for (std::size_t col = 0; col <= row; ++col) {
      if ((mask_[row * words + col / 64] >> (col % 64)) & 1u) out[row * nodes + col] = 0.0f;
    }
  }
  return out;
}

std::vector<std::uint64_t> TokenTree::submask(std::int32_t first, std::int32_t count) const {
  if (first < 0 || count < 0 || count > size() - first) return {};
  const std::size_t begin = static_cast<std::size_t>(first);
  const std::size_t nodes = static_cast<std::size_t>(count);
  const std::size_t words = static_cast<std::size_t>(mask_words());
  const std::size_t out_words = (nodes + 63) / 64;
  std::vector<std::uint64_t> out(nodes * out_words, 0);
  for (std::size_t row = 0; row < nodes; ++row) {
    const std::uint64_t* from = mask_.data() + (begin + row) * words;
    for (std::size_t col = 0; col <= row; ++col) {
      const std::uint64_t bit = (from[(begin + col) / 64] >> ((begin + col) % 64)) & 1u;
      out[row * out_words + col / 64] |= bit << (col % 64);
    }
  }
  return out;
}

}  // namespace quire
