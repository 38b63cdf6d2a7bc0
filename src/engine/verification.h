// Verification: the target's pass of a step over plain requests and trees, the logits of their nodes, and the keys that
// accepted paths leave behind.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "engine/model_runner.h"
#include "engine/scheduler.h"
#include "engine/tree_growth.h"

namespace quire {

// A tree is verified together: one row a node, each seeing its ancestors through the tree mask. Keys of siblings then
// stand between a node and its ancestors, so that sums run in another order than in plain decoding and last bits may
// differ. By path, each way from the root to a leaf is a causal sequence of its own over borrowed blocks, the shared
// nodes computed again: more rows, the same bits as plain decoding.
class Verification {
 public:
  using Trees = std::vector<std::optional<DraftTree>>;

  // The objects must outlive this one.
  Verification(ModelRunner& target, Scheduler& scheduler, TreeVerification how)
      : target_(&target), scheduler_(&scheduler), how_(how) {}

  // Runs the step. By path, branches that find no room among rows or blocks are taken out of the trees.
  Status run(std::span<const ScheduledRequest> step, Trees& trees);
  // The logits after a node of request `index`; node 0 for a request without a tree.
  std::span<const float> logits(std::size_t index, std::int32_t node) const;
  // Keeps the keys of an accepted path of request `index`, behind each other in the request's blocks.
  Status keep(std::size_t index, std::span<const std::int32_t> path);
  // Gives back what was borrowed; the step's logits are gone then.
  Status finish();

 private:
  struct Path {
    std::vector<std::int32_t> nodes;
    std::vector<std::int32_t> tokens;
    std::vector<BlockId> blocks;  // empty: the request's own
    std::vector<BlockId> borrowed;
  };
  struct Part {
    const RequestState* state = nullptr;
    std::size_t first_row = 0;  // in the batch's sequences
    bool together = false;      // a tree of its own rows
    std::vector<Path> paths;
  };
  Status add_paths(Part& part, const ScheduledRequest& one, DraftTree& tree);
  Result<bool> borrow(const RequestState& state, Path& path);

  ModelRunner* target_;
  Scheduler* scheduler_;
  TreeVerification how_;
  std::vector<Part> parts_;
};

}  // namespace quire
