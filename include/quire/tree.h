// Token trees of speculative decoding: choices, their mask and their levels.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "quire/status.h"

namespace quire {

// The root included. A batch carries size^2 / 64 words of mask a request.
inline constexpr std::int32_t kMaxTreeSize = 4096;

// A path from the root: the child index taken at each depth, (0), (1), (0, 0) ...
using TreePath = std::vector<std::int32_t>;

// A validated tree. Node 0 is the root (the last accepted token); node i + 1 is choice i in breadth-first order.
class TokenTree {
 public:
  // Sorts the choices by (length, path). Errors name the offending path: empty, negative entry, duplicate, missing
  // parent. No choice at all is the root alone.
  static Result<TokenTree> from_choices(std::span<const TreePath> choices);
  // Parses "[(0,), (1,), (0, 0)]" (a Python list of tuples, as speculative_token_tree is written). Errors give the
  // column.
  static Result<TokenTree> parse(std::string_view text);
  // (0), (0, 0), ... of `length` choices; 0 <= length < kMaxTreeSize.
  static Result<TokenTree> chain(std::int32_t length);
  // Nodes by parent: parents[i] is the parent of node i + 1, a node index in [0, i]; any growing order is taken and
  // kept. choices() are the paths of the nodes in that order.
  static Result<TokenTree> from_parents(std::span<const std::int32_t> parents);

  std::int32_t size() const { return static_cast<std::int32_t>(parents_.size()) + 1; }
  // Parent of node i (i >= 1).
  std::int32_t parent(std::int32_t node) const { return parents_[static_cast<std::size_t>(node - 1)]; }
  std::int32_t depth(std::int32_t node) const { return depths_[static_cast<std::size_t>(node)]; }
  // Nodes at depth 1, 2, ...
  const std::vector<std::int32_t>& depth_counts() const { return depth_counts_; }
  std::span<const TreePath> choices() const { return choices_; }

  std::int32_t mask_words() const { return (size() + 63) / 64; }
  // [size, mask_words]: bit c of row r is set if node r may attend node c (itself and its ancestors).
  const std::vector<std::uint64_t>& mask() const { return mask_; }
  // The same as float [size, size]: 0 where set, -inf elsewhere.
  std::vector<float> bias() const;
  // The mask of nodes [first, first + count) alone, as drafting levels use it; [count, ceil(count / 64)]. Empty unless
  // 0 <= first, 0 <= count and first + count <= size().
  std::vector<std::uint64_t> submask(std::int32_t first, std::int32_t count) const;

 private:
  // Fills depths, counts and mask from parents_.
  void finish();

  std::vector<TreePath> choices_;
  std::vector<std::int32_t> parents_;
  std::vector<std::int32_t> depths_;
  std::vector<std::int32_t> depth_counts_;
  std::vector<std::uint64_t> mask_;
};

}  // namespace quire
