// How a tree of drafts comes about: which nodes are expanded level by level, and which of them stay.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "quire/engine.h"
#include "quire/status.h"
#include "quire/tree.h"

namespace quire {

// Rows that drafting and verifying a tree of this policy need at most, root included.
std::int32_t max_tree_rows(const TreePolicy& policy);
// Errors: sizes out of range, more rows than max_rows.
Status check_policy(const TreePolicy& policy, std::int32_t max_rows);
// Whether a tree, or every tree of a policy, is a chain, which needs no tree attention.
bool is_chain(const TokenTree& tree);
bool is_chain(const TreePolicy& policy);

// A tree with the token of each node; node 0 is the root, the sequence's last token.
struct DraftTree {
  TokenTree tree;
  std::vector<std::int32_t> tokens;
  std::vector<std::int32_t> draft_rows;  // [node] the row of the draft's tree that holds its keys; -1: none

  // The child of `node` with this token, or -1.
  std::int32_t child(std::int32_t node, std::int32_t token) const;
};

// One request's tree while it grows. Row r of `rows` is a node that the draft model has run or is about to run.
class TreeGrowth {
 public:
  TreeGrowth(const TreePolicy& policy, std::int32_t root_token, std::int32_t max_depth);

  // The rows of the next pass, root first, as a tree of their own; the new rows are the last `num_new_rows`. Empty
  // when nothing is left to expand.
  const std::vector<std::int32_t>& row_tokens() const { return row_tokens_; }
  const std::vector<std::int32_t>& row_parents() const { return row_parents_; }  // of rows 1 ..
  std::int32_t num_new_rows() const { return num_new_rows_; }
  // The draft's logits after each new row. Sampling sharpens or flattens them as it does the target's.
  void expand(std::span<const std::span<const float>> logits, float temperature);
  // The nodes that stay, sorted by depth.
  Result<DraftTree> finish() const;

 private:
  struct Node {
    std::int32_t parent = 0;
    std::int32_t token = 0;
    std::int32_t depth = 0;
    std::int32_t child_index = 0;
    std::int32_t choice = 0;  // node of the policy's choices
    std::int32_t row = -1;
    double log_probability = 0.0;
  };
  void expand_node(std::int32_t node, std::span<const float> logits, float temperature);
  void pick_next_rows(std::size_t first_child);
  std::vector<std::int32_t> kept_nodes() const;

  TreePolicy policy_;
  std::int32_t max_depth_ = 0;
  std::vector<Node> nodes_;
  std::vector<std::int32_t> row_nodes_;
  std::vector<std::int32_t> row_tokens_;
  std::vector<std::int32_t> row_parents_;
  std::int32_t num_new_rows_ = 1;
};

// Drafts from the sequence itself: what followed the latest earlier places where its last tokens stood, the longest
// match first. Branches are the different continuations.
Result<DraftTree> draft_from_ngrams(const TreePolicy& policy, std::span<const std::int32_t> tokens,
                                    std::int32_t max_depth);

}  // namespace quire
