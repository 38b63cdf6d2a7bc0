// Implements drafting, acceptance and compaction.
#include "engine/speculation.h"

#include <algorithm>
#include <chrono>

namespace quire {
namespace {

// The deepest node that can still be accepted: the token after it must fit too.
std::int32_t depth_limit(const RequestState& state) {
  return state.request.sampling.max_tokens - state.num_output() - 1;
}

}  // namespace

Result<std::vector<std::optional<DraftTree>>> Speculator::draft_trees(std::span<const ScheduledRequest> step) {
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::optional<DraftTree>> trees(step.size());
  std::vector<Growing> growing;
  for (std::size_t i = 0; i < step.size(); ++i) {
    if (step[i].tree_rows == 0) continue;
    const RequestState& state = *step[i].state;
    const TreePolicy& policy = *state.request.tree;
    if (draft_ != nullptr) {
      growing.push_back({i, &step[i], TreeGrowth(policy, state.tokens.back(), depth_limit(state))});
      continue;
    }
    QUIRE_ASSIGN_OR_RETURN(DraftTree tree, draft_from_ngrams(policy, state.tokens, depth_limit(state)));
    if (tree.tree.size() > 1) trees[i] = std::move(tree);
  }
  if (!growing.empty()) {
    QUIRE_RETURN_IF_ERROR(catch_up(growing));
    std::vector<Growing*> open;
    for (Growing& one : growing) open.push_back(&one);
    while (true) {
      std::erase_if(open, [](const Growing* one) { return one->growth.num_new_rows() == 0; });
      if (open.empty()) break;
      QUIRE_RETURN_IF_ERROR(grow_level(open));
    }
    for (const Growing& one : growing) {
      QUIRE_ASSIGN_OR_RETURN(DraftTree tree, one.growth.finish());
      if (tree.tree.size() > 1) trees[one.index] = std::move(tree);
    }
  }
  stats_.draft_seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return trees;
}

// The draft runs every token that it has not seen; the last one, the root, gives the first level.
Status Speculator::catch_up(std::span<Growing> growing) {
  std::vector<Growing*> left;
  for (Growing& one : growing) left.push_back(&one);
  while (!left.empty()) {
    std::vector<SequenceRows> rows;
    std::vector<Growing*> taken;
    std::int32_t budget = max_tokens_;
    for (Growing* one : left) {
      RequestState& state = *one->scheduled->state;
      const std::int32_t unseen = static_cast<std::int32_t>(state.tokens.size()) - state.draft_computed;
      const std::int32_t count = std::min(unseen, budget);
      if (count == 0) break;
      rows.push_back(
          {.tokens = std::span(state.tokens)
                         .subspan(static_cast<std::size_t>(state.draft_computed), static_cast<std::size_t>(count)),
           .context_len = state.draft_computed,
           .blocks = state.blocks,
           .first_output = count == unseen ? count - 1 : count});
      taken.push_back(one);
      budget -= count;
    }
    QUIRE_RETURN_IF_ERROR(draft_->run(rows));
    for (std::size_t i = 0; i < taken.size(); ++i) {
      RequestState& state = *taken[i]->scheduled->state;
      state.draft_computed += static_cast<std::int32_t>(rows[i].tokens.size());
      if (state.draft_computed < static_cast<std::int32_t>(state.tokens.size())) continue;
      const std::span<const float> logits = draft_->logits(i, 0);
      taken[i]->growth.expand({&logits, 1}, state.request.sampling.temperature);
      std::erase(left, taken[i]);
    }
  }
  return {};
}

// One more level for all trees. Rows that follow each other are ordinary decoding: only the last one is new. Rows of a
// branching tree run again from the root on, since each must see its own ancestors' keys.
Status Speculator::grow_level(std::span<Growing* const> growing) {
  for (std::size_t begin = 0; begin < growing.size();) {
    std::vector<SequenceRows> rows;
    std::vector<TokenTree> trees;
    trees.reserve(growing.size());
    std::int32_t budget = max_tokens_;
    std::size_t end = begin;
    for (; end < growing.size(); ++end) {
      const TreeGrowth& growth = growing[end]->growth;
      const auto count = static_cast<std::int32_t>(growth.row_tokens().size());
      if (count > budget) break;
      budget -= count;
      const RequestState& state = *growing[end]->scheduled->state;
      QUIRE_ASSIGN_OR_RETURN(TokenTree tree, TokenTree::from_parents(growth.row_parents()));
      trees.push_back(std::move(tree));
      const bool chain = is_chain(trees.back());
      const std::int32_t known = chain ? count - growth.num_new_rows() : 0;
      rows.push_back({.tokens = std::span(growth.row_tokens()).subspan(static_cast<std::size_t>(known)),
                      .context_len = static_cast<std::int32_t>(state.tokens.size()) - 1 + known,
                      .blocks = state.blocks,
                      .tree = chain ? nullptr : &trees.back(),
                      .first_output = count - growth.num_new_rows() - known});
    }
    if (end == begin) return internal_error("tree: want a tree that fits max_num_batched_tokens");
    QUIRE_RETURN_IF_ERROR(draft_->run(rows));
    for (std::size_t i = begin; i < end; ++i) {
      TreeGrowth& growth = growing[i]->growth;
      std::vector<std::span<const float>> logits;
      for (std::int32_t row = 0; row < growth.num_new_rows(); ++row) logits.push_back(draft_->logits(i - begin, row));
      growth.expand(logits, growing[i]->scheduled->state->request.sampling.temperature);
    }
    begin = end;
  }
  return {};
}

Status Speculator::keep(RequestState& state, const DraftTree& draft, std::span<const std::int32_t> path) {
  if (draft_ == nullptr) return {};
  const std::int32_t context = state.num_computed;
  std::vector<ModelRunner::Move> moves;
  for (std::size_t depth = 1; depth < path.size(); ++depth) {
    const std::int32_t row = draft.draft_rows[static_cast<std::size_t>(path[depth])];
    if (row < 0) break;
    const auto to = context + static_cast<std::int32_t>(depth);
    if (context + row != to) moves.push_back({context + row, to});
    state.draft_computed = to + 1;
  }
  return draft_->move(state.blocks, state.blocks, moves);
}

void Speculator::count(const DraftTree& draft, std::span<const std::int32_t> path) {
  const std::size_t deepest = draft.tree.depth_counts().size();
  if (stats_.offered_by_depth.size() < deepest) {
    stats_.offered_by_depth.resize(deepest);
    stats_.accepted_by_depth.resize(deepest);
  }
  ++stats_.verify_steps;
  stats_.drafted_nodes += draft.tree.size() - 1;
  stats_.emitted_tokens += static_cast<std::int64_t>(path.size());
  for (std::size_t depth = 0; depth < path.size() && depth < deepest; ++depth) {
    bool offered = false;
    for (std::int32_t node = path[depth] + 1; node < draft.tree.size(); ++node) {
      offered = offered || draft.tree.parent(node) == path[depth];
    }
    if (offered) ++stats_.offered_by_depth[depth];
    if (depth + 1 < path.size()) ++stats_.accepted_by_depth[depth];
  }
}

}  // namespace quire
