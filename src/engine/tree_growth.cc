// Implements the growth of draft trees.
#include "engine/tree_growth.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "engine/sampler.h"
#include "models/ops.h"

namespace quire {
namespace {

constexpr std::int32_t kLongestNgram = 4;

std::int32_t policy_depth(const TreePolicy& policy) {
  return policy.choices ? static_cast<std::int32_t>(policy.choices->depth_counts().size()) : policy.max_depth;
}

// Children of node `choice` in the policy's choices: pairs of child index and node.
std::vector<std::pair<std::int32_t, std::int32_t>> choice_children(const TokenTree& tree, std::int32_t choice) {
  std::vector<std::pair<std::int32_t, std::int32_t>> out;
  for (std::int32_t node = 1; node < tree.size(); ++node) {
    if (tree.parent(node) == choice) out.emplace_back(tree.choices()[static_cast<std::size_t>(node - 1)].back(), node);
  }
  std::sort(out.begin(), out.end());
  return out;
}

Result<DraftTree> make_draft(std::vector<std::int32_t> parents, std::vector<std::int32_t> tokens,
                             std::vector<std::int32_t> rows) {
  QUIRE_ASSIGN_OR_RETURN(TokenTree tree, TokenTree::from_parents(parents));
  return DraftTree{std::move(tree), std::move(tokens), std::move(rows)};
}

}  // namespace

std::int32_t max_tree_rows(const TreePolicy& policy) {
  if (policy.choices) return policy.choices->size();
  return 1 + std::max(policy.max_nodes, policy.beam * (policy.max_depth - 1));
}

Status check_policy(const TreePolicy& policy, std::int32_t max_rows) {
  if (policy.choices && policy.choices->size() < 2) return invalid_argument("tree: want at least one draft, got none");
  if (!policy.choices) {
    const std::pair<const char*, std::int32_t> sizes[] = {{"max_nodes", policy.max_nodes},
                                                          {"max_depth", policy.max_depth},
                                                          {"beam", policy.beam},
                                                          {"branch", policy.branch}};
    for (const auto& [name, value] : sizes) {
      if (value >= 1 && value <= kMaxTreeSize) continue;
      return invalid_argument(std::string("tree.") + name + ": want 1 to " + std::to_string(kMaxTreeSize) + ", got " +
                              std::to_string(value));
    }
    if (!(policy.min_probability >= 0.0f) || policy.min_probability > 1.0f) {
      return invalid_argument("tree.min_probability: want [0, 1], got " + std::to_string(policy.min_probability));
    }
  }
  const std::int64_t grown = static_cast<std::int64_t>(policy.beam) * (policy.max_depth - 1);
  if ((!policy.choices && grown >= max_rows) || max_tree_rows(policy) > max_rows) {
    return invalid_argument(
        "tree: want at most " + std::to_string(max_rows) + " rows (max_tree_size), got " +
        std::to_string(policy.choices ? policy.choices->size() : std::max<std::int64_t>(grown, policy.max_nodes) + 1));
  }
  return {};
}

bool is_chain(const TokenTree& tree) {
  const std::vector<std::int32_t>& counts = tree.depth_counts();
  return std::all_of(counts.begin(), counts.end(), [](std::int32_t count) { return count == 1; });
}

bool is_chain(const TreePolicy& policy) {
  return policy.choices ? is_chain(*policy.choices) : policy.beam == 1 && policy.branch == 1;
}

std::int32_t DraftTree::child(std::int32_t node, std::int32_t token) const {
  for (std::int32_t i = node + 1; i < tree.size(); ++i) {
    if (tree.parent(i) == node && tokens[static_cast<std::size_t>(i)] == token) return i;
  }
  return -1;
}

TreeGrowth::TreeGrowth(const TreePolicy& policy, std::int32_t root_token, std::int32_t max_depth)
    : policy_(policy), max_depth_(std::min(policy_depth(policy), max_depth)) {
  nodes_.push_back({.token = root_token, .row = 0});
  row_nodes_.push_back(0);
  row_tokens_.push_back(root_token);
}

void TreeGrowth::expand_node(std::int32_t index, std::span<const float> logits, float temperature) {
  const Node parent = nodes_[static_cast<std::size_t>(index)];
  std::vector<std::pair<std::int32_t, std::int32_t>> wanted;  // child index, node of the choices
  if (policy_.choices) {
    wanted = choice_children(*policy_.choices, parent.choice);
  } else {
    for (std::int32_t i = 0; i < policy_.branch; ++i) wanted.emplace_back(i, 0);
  }
  if (wanted.empty()) return;
  const std::vector<std::int32_t> best = largest(logits, wanted.back().first + 1);
  const double scale = temperature > 0.0f ? 1.0 / static_cast<double>(temperature) : 1.0;
  const float top = logits[static_cast<std::size_t>(best.front())];
  const double total = static_cast<double>(exp_sum(logits, top, static_cast<float>(std::min(scale, 1e30))));
  for (const auto& [child, choice] : wanted) {
    if (child >= static_cast<std::int32_t>(best.size())) break;
    const std::int32_t token = best[static_cast<std::size_t>(child)];
    const double chance = scale * static_cast<double>(logits[static_cast<std::size_t>(token)] - top) - std::log(total);
    Node node{.parent = index, .token = token, .depth = parent.depth + 1, .child_index = child, .choice = choice};
    node.log_probability = parent.log_probability + chance;
    if (!policy_.choices && std::exp(node.log_probability) < static_cast<double>(policy_.min_probability)) break;
    nodes_.push_back(node);
  }
}

void TreeGrowth::expand(std::span<const std::span<const float>> logits, float temperature) {
  const std::size_t first_child = nodes_.size();
  const std::size_t first_row = row_nodes_.size() - static_cast<std::size_t>(num_new_rows_);
  for (std::size_t i = 0; i < logits.size(); ++i) expand_node(row_nodes_[first_row + i], logits[i], temperature);
  pick_next_rows(first_child);
}

// Of the new nodes, those that a deeper level grows from become rows.
void TreeGrowth::pick_next_rows(std::size_t first_child) {
  num_new_rows_ = 0;
  if (first_child == nodes_.size() || nodes_[first_child].depth >= max_depth_) return;
  std::vector<std::int32_t> next;
  for (std::size_t i = first_child; i < nodes_.size(); ++i) {
    const bool grows = !policy_.choices || !choice_children(*policy_.choices, nodes_[i].choice).empty();
    if (grows) next.push_back(static_cast<std::int32_t>(i));
  }
  const auto likelier = [this](std::int32_t a, std::int32_t b) {
    const double x = nodes_[static_cast<std::size_t>(a)].log_probability;
    const double y = nodes_[static_cast<std::size_t>(b)].log_probability;
    return x != y ? x > y : a < b;
  };
  if (!policy_.choices) {
    std::sort(next.begin(), next.end(), likelier);
    next.resize(std::min(next.size(), static_cast<std::size_t>(policy_.beam)));
    std::sort(next.begin(), next.end());
  }
  for (const std::int32_t node : next) {
    Node& one = nodes_[static_cast<std::size_t>(node)];
    one.row = static_cast<std::int32_t>(row_nodes_.size());
    row_nodes_.push_back(node);
    row_tokens_.push_back(one.token);
    row_parents_.push_back(nodes_[static_cast<std::size_t>(one.parent)].row);
    ++num_new_rows_;
  }
}

// Parents are likelier than their children and were made before them, so the likeliest nodes form a tree.
std::vector<std::int32_t> TreeGrowth::kept_nodes() const {
  std::vector<std::int32_t> kept;
  for (std::size_t i = 1; i < nodes_.size(); ++i) kept.push_back(static_cast<std::int32_t>(i));
  if (!policy_.choices && kept.size() > static_cast<std::size_t>(policy_.max_nodes)) {
    std::stable_sort(kept.begin(), kept.end(), [this](std::int32_t a, std::int32_t b) {
      return nodes_[static_cast<std::size_t>(a)].log_probability > nodes_[static_cast<std::size_t>(b)].log_probability;
    });
    kept.resize(static_cast<std::size_t>(policy_.max_nodes));
    std::sort(kept.begin(), kept.end());
  }
  return kept;
}

Result<DraftTree> TreeGrowth::finish() const {
  std::vector<std::int32_t> place(nodes_.size(), 0);  // node -> node of the tree
  std::vector<std::int32_t> parents;
  std::vector<std::int32_t> tokens = {nodes_.front().token};
  std::vector<std::int32_t> rows = {0};
  for (const std::int32_t index : kept_nodes()) {
    const Node& node = nodes_[static_cast<std::size_t>(index)];
    place[static_cast<std::size_t>(index)] = static_cast<std::int32_t>(tokens.size());
    parents.push_back(place[static_cast<std::size_t>(node.parent)]);
    tokens.push_back(node.token);
    rows.push_back(node.row);
  }
  return make_draft(std::move(parents), std::move(tokens), std::move(rows));
}

namespace {

// Nodes of an n-gram tree while continuations are added.
struct NgramTree {
  std::vector<std::int32_t> parents = {0};  // of node i; node 0 is the root
  std::vector<std::int32_t> tokens;
  std::vector<std::int32_t> depths = {0};

  std::int32_t child(std::int32_t node, std::int32_t token) const {
    for (std::size_t i = 1; i < tokens.size(); ++i) {
      if (parents[i] == node && tokens[i] == token) return static_cast<std::int32_t>(i);
    }
    return -1;
  }
  void add(std::span<const std::int32_t> continuation, std::int32_t max_nodes) {
    std::int32_t node = 0;
    for (const std::int32_t token : continuation) {
      std::int32_t next = child(node, token);
      if (next < 0) {
        if (static_cast<std::int32_t>(tokens.size()) > max_nodes) return;
        next = static_cast<std::int32_t>(tokens.size());
        parents.push_back(node);
        tokens.push_back(token);
        depths.push_back(depths[static_cast<std::size_t>(node)] + 1);
      }
      node = next;
    }
  }
};

bool same_tail(std::span<const std::int32_t> tokens, std::size_t end, std::size_t length) {
  return std::equal(tokens.end() - static_cast<std::ptrdiff_t>(length), tokens.end(),
                    tokens.begin() + static_cast<std::ptrdiff_t>(end - length));
}

// Keeps the nodes that `choices` names: child j is the j-th continuation that was found.
std::vector<std::int32_t> chosen_nodes(const NgramTree& found, const TokenTree& choices) {
  std::vector<std::int32_t> kept;
  std::vector<std::int32_t> stands_for(found.tokens.size(), -1);  // node of choices
  stands_for[0] = 0;
  std::vector<std::int32_t> children(found.tokens.size(), 0);
  for (std::size_t i = 1; i < found.tokens.size(); ++i) {
    const auto parent = static_cast<std::size_t>(found.parents[i]);
    const std::int32_t index = children[parent]++;
    if (stands_for[parent] < 0) continue;
    for (const auto& [child, node] : choice_children(choices, stands_for[parent])) {
      if (child == index) stands_for[i] = node;
    }
    if (stands_for[i] >= 0) kept.push_back(static_cast<std::int32_t>(i));
  }
  return kept;
}

}  // namespace

Result<DraftTree> draft_from_ngrams(const TreePolicy& policy, std::span<const std::int32_t> tokens,
                                    std::int32_t max_depth) {
  const auto depth = static_cast<std::size_t>(std::min(policy_depth(policy), max_depth));
  const std::size_t branches =
      policy.choices ? static_cast<std::size_t>(policy.choices->size()) : static_cast<std::size_t>(policy.beam);
  const std::int32_t max_nodes = policy.choices ? kMaxTreeSize : policy.max_nodes;
  NgramTree found;
  found.tokens = {tokens.back()};
  std::size_t matches = 0;
  for (std::size_t length = std::min<std::size_t>(kLongestNgram, tokens.size() - 1); length >= 1; --length) {
    for (std::size_t end = tokens.size() - 1; end >= length && matches < branches; --end) {
      if (!same_tail(tokens, end, length)) continue;
      found.add(tokens.subspan(end, std::min(depth, tokens.size() - end)), max_nodes);
      ++matches;
    }
  }
  std::vector<std::int32_t> kept;
  if (policy.choices) {
    kept = chosen_nodes(found, *policy.choices);
  } else {
    for (std::size_t i = 1; i < found.tokens.size(); ++i) kept.push_back(static_cast<std::int32_t>(i));
  }
  std::stable_sort(kept.begin(), kept.end(), [&found](std::int32_t a, std::int32_t b) {
    return found.depths[static_cast<std::size_t>(a)] < found.depths[static_cast<std::size_t>(b)];
  });
  std::vector<std::int32_t> place(found.tokens.size(), 0);
  std::vector<std::int32_t> parents;
  std::vector<std::int32_t> kept_tokens = {tokens.back()};
  for (const std::int32_t node : kept) {
    place[static_cast<std::size_t>(node)] = static_cast<std::int32_t>(kept_tokens.size());
    parents.push_back(place[static_cast<std::size_t>(found.parents[static_cast<std::size_t>(node)])]);
    kept_tokens.push_back(found.tokens[static_cast<std::size_t>(node)]);
  }
  std::vector<std::int32_t> rows(kept_tokens.size(), -1);
  return make_draft(std::move(parents), std::move(kept_tokens), std::move(rows));
}

}  // namespace quire
