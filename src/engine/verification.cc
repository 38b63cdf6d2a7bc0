// Implements Verification.
#include "engine/verification.h"

#include <algorithm>

#include "core/checked.h"

namespace quire {
namespace {

std::vector<std::int32_t> path_to(const TokenTree& tree, std::int32_t node) {
  std::vector<std::int32_t> path = {node};
  while (node > 0) path.push_back(node = tree.parent(node));
  std::reverse(path.begin(), path.end());
  return path;
}

bool is_leaf(const TokenTree& tree, std::int32_t node) {
  for (std::int32_t other = node + 1; other < tree.size(); ++other) {
    if (tree.parent(other) == node) return false;
  }
  return true;
}

// The tree of the nodes with kept[node]; whoever is kept has a kept parent.
Result<DraftTree> prune(const DraftTree& draft, const std::vector<bool>& kept) {
  std::vector<std::int32_t> place(kept.size(), 0);
  std::vector<std::int32_t> parents;
  std::vector<std::int32_t> tokens = {draft.tokens.front()};
  std::vector<std::int32_t> rows = {draft.draft_rows.front()};
  for (std::int32_t node = 1; node < draft.tree.size(); ++node) {
    const auto at = static_cast<std::size_t>(node);
    if (!kept[at]) continue;
    place[at] = static_cast<std::int32_t>(tokens.size());
    parents.push_back(place[static_cast<std::size_t>(draft.tree.parent(node))]);
    tokens.push_back(draft.tokens[at]);
    rows.push_back(draft.draft_rows[at]);
  }
  QUIRE_ASSIGN_OR_RETURN(TokenTree tree, TokenTree::from_parents(parents));
  return DraftTree{std::move(tree), std::move(tokens), std::move(rows)};
}

}  // namespace

// Blocks for the path's positions behind the last full block of the context, whose remainder is copied.
Result<bool> Verification::borrow(const RequestState& state, Path& path) {
  const std::int32_t size = scheduler_->block_size();
  const std::int32_t first = state.num_computed / size;
  const std::int64_t end = ceil_div(state.num_computed + static_cast<std::int64_t>(path.nodes.size()), size);
  QUIRE_ASSIGN_OR_RETURN(path.borrowed, scheduler_->borrow(end - first));
  if (path.borrowed.empty()) return false;
  path.blocks.assign(state.blocks.begin(), state.blocks.begin() + first);
  path.blocks.insert(path.blocks.end(), path.borrowed.begin(), path.borrowed.end());
  std::vector<ModelRunner::Move> moves;
  for (std::int32_t position = first * size; position < state.num_computed; ++position) {
    moves.push_back({position, position});
  }
  QUIRE_RETURN_IF_ERROR(target_->move(state.blocks, path.blocks, moves));
  return true;
}

Status Verification::add_paths(Part& part, const ScheduledRequest& one, DraftTree& tree) {
  std::int32_t rows_left = one.tree_rows;
  std::vector<bool> kept(static_cast<std::size_t>(tree.tree.size()), false);
  for (std::int32_t leaf = tree.tree.size() - 1; leaf > 0; --leaf) {  // deep ones first
    if (!is_leaf(tree.tree, leaf)) continue;
    Path path{.nodes = path_to(tree.tree, leaf), .tokens = {}, .blocks = {}, .borrowed = {}};
    const auto rows = static_cast<std::int32_t>(path.nodes.size());
    if (rows > rows_left) continue;
    if (!part.paths.empty()) {
      QUIRE_ASSIGN_OR_RETURN(const bool borrowed, borrow(*one.state, path));
      if (!borrowed) continue;
    }
    rows_left -= rows;
    for (const std::int32_t node : path.nodes) kept[static_cast<std::size_t>(node)] = true;
    part.paths.push_back(std::move(path));
  }
  // The paths speak of the pruned tree's nodes from here on.
  std::vector<std::int32_t> place(kept.size(), 0);
  std::int32_t count = 0;
  for (std::size_t node = 0; node < kept.size(); ++node) place[node] = kept[node] ? count++ : -1;
  QUIRE_ASSIGN_OR_RETURN(tree, prune(tree, kept));
  for (Path& path : part.paths) {
    for (std::int32_t& node : path.nodes) {
      node = place[static_cast<std::size_t>(node)];
      path.tokens.push_back(tree.tokens[static_cast<std::size_t>(node)]);
    }
  }
  return {};
}

Status Verification::run(std::span<const ScheduledRequest> step, Trees& trees) {
  parts_.assign(step.size(), {});
  std::vector<SequenceRows> rows;
  for (std::size_t i = 0; i < step.size(); ++i) {
    const RequestState& state = *step[i].state;
    Part& part = parts_[i];
    part.state = &state;
    part.first_row = rows.size();
    SequenceRows one{.context_len = state.num_computed,
                     .blocks = state.blocks,
                     .cross_blocks = state.cross_blocks,
                     .cross_len = static_cast<std::int32_t>(state.encoder_tokens.size())};
    if (!trees[i]) {
      one.tokens =
          std::span(state.tokens)
              .subspan(static_cast<std::size_t>(state.num_computed), static_cast<std::size_t>(step[i].num_tokens));
      one.first_output = step[i].brings_token() ? step[i].num_tokens - 1 : step[i].num_tokens;
      rows.push_back(one);
      continue;
    }
    const bool chain = is_chain(trees[i]->tree);
    part.together = chain || how_ == TreeVerification::kTogether;
    if (part.together) {
      one.tokens = trees[i]->tokens;
      one.tree = chain ? nullptr : &trees[i]->tree;
      rows.push_back(one);
      continue;
    }
    QUIRE_RETURN_IF_ERROR(add_paths(part, step[i], *trees[i]));
    for (const Path& path : part.paths) {
      one.tokens = path.tokens;
      one.blocks = path.blocks.empty() ? std::span<const BlockId>(state.blocks) : path.blocks;
      rows.push_back(one);
    }
  }
  return target_->run(rows);
}

std::span<const float> Verification::logits(std::size_t index, std::int32_t node) const {
  const Part& part = parts_[index];
  for (std::size_t i = 0; i < part.paths.size(); ++i) {
    const std::vector<std::int32_t>& nodes = part.paths[i].nodes;
    const auto found = std::find(nodes.begin(), nodes.end(), node);
    if (found != nodes.end()) {
      return target_->logits(part.first_row + i, static_cast<std::int32_t>(found - nodes.begin()));
    }
  }
  return target_->logits(part.first_row, node);
}

Status Verification::keep(std::size_t index, std::span<const std::int32_t> path) {
  const Part& part = parts_[index];
  const std::int32_t context = part.state->num_computed;
  std::vector<ModelRunner::Move> moves;
  if (part.together) {
    for (std::size_t depth = 1; depth < path.size(); ++depth) {
      const auto to = context + static_cast<std::int32_t>(depth);
      if (context + path[depth] != to) moves.push_back({context + path[depth], to});
    }
    return target_->move(part.state->blocks, part.state->blocks, moves);
  }
  for (const Path& one : part.paths) {
    if (std::find(one.nodes.begin(), one.nodes.end(), path.back()) == one.nodes.end()) continue;
    if (one.blocks.empty()) return {};
    for (std::size_t depth = 0; depth < path.size(); ++depth) {
      const auto at = context + static_cast<std::int32_t>(depth);
      moves.push_back({at, at});
    }
    return target_->move(one.blocks, part.state->blocks, moves);
  }
  return internal_error("keep: want a path of the verified tree");
}

Status Verification::finish() {
  for (const Part& part : parts_) {
    for (const Path& path : part.paths) QUIRE_RETURN_IF_ERROR(scheduler_->give_back(path.borrowed));
  }
  parts_.clear();
  return {};
}

}  // namespace quire
