// Drafting of token trees for the requests of a step, acceptance against the target's logits, and its statistics.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "engine/model_runner.h"
#include "engine/scheduler.h"
#include "engine/tree_growth.h"

namespace quire {

// The tokens that a verified tree yields: the accepted path and one token more, chosen after its last node.
struct Acceptance {
  std::vector<std::int32_t> path;    // nodes, the root first
  std::vector<std::int32_t> tokens;  // path.size() of them
};

class Speculator {
 public:
  // `draft` is null for n-gram drafting.
  Speculator(std::unique_ptr<ModelRunner> draft, std::int32_t max_num_batched_tokens)
      : draft_(std::move(draft)), max_tokens_(max_num_batched_tokens) {}

  ModelRunner* draft() { return draft_.get(); }
  // A tree for each request of the step that may have one; none for the others. The draft model catches up with the
  // sequences first, several passes if the budget asks for it.
  Result<std::vector<std::optional<DraftTree>>> draft_trees(std::span<const ScheduledRequest> step);
  // Walks the tree: at each node the target's token is chosen as without speculation, and the walk goes on while a
  // child carries it. So the output is the one that the target alone would have given, token for token.
  template <class Choose>
  static Acceptance accept(const DraftTree& draft, Choose choose) {
    Acceptance out;
    for (std::int32_t node = 0; node >= 0;) {
      out.path.push_back(node);
      out.tokens.push_back(choose(node, draft.tree.depth(node)));
      node = draft.child(node, out.tokens.back());
    }
    return out;
  }
  // Keeps the accepted path's keys in the draft's cache: they move up behind the root.
  Status keep(RequestState& state, const DraftTree& draft, std::span<const std::int32_t> path);
  void count(const DraftTree& draft, std::span<const std::int32_t> path);
  const SpeculationStats& stats() const { return stats_; }

 private:
  struct Growing {
    std::size_t index = 0;
    const ScheduledRequest* scheduled = nullptr;
    TreeGrowth growth;
  };
  Status catch_up(std::span<Growing> growing);
  Status grow_level(std::span<Growing* const> growing);

  std::unique_ptr<ModelRunner> draft_;
  std::int32_t max_tokens_ = 0;
  SpeculationStats stats_;
};

}  // namespace quire
