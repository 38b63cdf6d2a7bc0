// make_draft_level: lengths, positions and slots of one level of drafting.
#include "quire/tree_draft.h"

#include <algorithm>
#include <limits>

#include "plan/batch.h"

namespace quire {
namespace {

Status check_input(const DraftLevelInput& input) {
  if (input.tree == nullptr) return invalid_argument("tree: want a tree, got null");
  const TokenTree& tree = *input.tree;
  for (std::int32_t node = 1; node + 1 < tree.size(); ++node) {
    if (tree.depth(node + 1) < tree.depth(node)) {
      return invalid_argument("tree: want nodes sorted by depth, got depth " + std::to_string(tree.depth(node + 1)) +
                              " at node " + std::to_string(node + 1) + " behind depth " +
                              std::to_string(tree.depth(node)));
    }
  }
  const std::int32_t num_levels = static_cast<std::int32_t>(tree.depth_counts().size()) - 1;
  if (input.level < 0 || input.level >= num_levels) {
    return out_of_range("level: want a level that has children, in [0, " + std::to_string(std::max(num_levels, 0)) +
                        "), got " + std::to_string(input.level));
  }
  if (input.block_size < 1) {
    return invalid_argument("block_size: want at least 1, got " + std::to_string(input.block_size));
  }
  constexpr std::int64_t kMaxPosition = std::numeric_limits<std::int32_t>::max() - kMaxTreeSize;
  for (std::size_t req = 0; req < input.root_positions.size(); ++req) {
    const std::int64_t root = input.root_positions[req];
    if (root >= 0 && root <= kMaxPosition) continue;
    return out_of_range(at_request("root_positions", static_cast<std::int64_t>(req)) + "want 0 to " +
                        std::to_string(kMaxPosition) + ", got " + std::to_string(root));
  }
  return {};
}

}  // namespace

Result<DraftLevel> make_draft_level(const DraftLevelInput& input) {
  QUIRE_RETURN_IF_ERROR(check_input(input));
  const TokenTree& tree = *input.tree;
  DraftLevel level;
  level.num_reqs = static_cast<std::int32_t>(input.root_positions.size());
  level.num_new_drafts = tree.depth_counts()[static_cast<std::size_t>(input.level)];
  for (std::int32_t i = 0; i <= input.level; ++i) level.query_len += tree.depth_counts()[static_cast<std::size_t>(i)];
  CommonAttentionMetadata common;
  common.num_reqs = level.num_reqs;
  common.block_table_tensor = input.block_table;
  if (level.num_reqs > 0) QUIRE_RETURN_IF_ERROR(check_host_block_table(common));
  const BatchLimits limits{.num_blocks = input.num_blocks, .block_size = input.block_size};
  const std::int64_t total_drafts = tree.size() - 1;
  level.query_start_loc.push_back(0);
  for (std::int32_t req = 0; req < level.num_reqs; ++req) {
    const std::int64_t root = input.root_positions[static_cast<std::size_t>(req)];
    const bool fits = root + total_drafts < input.max_model_len;
    level.query_start_loc.push_back(level.query_start_loc.back() + level.query_len);
    level.seq_lens.push_back(fits ? static_cast<std::int32_t>(root + 1 + level.query_len) : 1);
    level.max_seq_len = std::max(level.max_seq_len, level.seq_lens.back());
    for (std::int32_t row = 0; row < level.query_len; ++row) {
      level.positions.push_back(fits ? root + tree.depth(row + 1) : 0);
      if (!fits) {
        level.slot_mapping.push_back(-1);
        continue;
      }
      const std::int64_t position = root + 1 + row;
      QUIRE_ASSIGN_OR_RETURN(const std::int64_t block, block_of(common, req, position, limits));
      level.slot_mapping.push_back(block * input.block_size + position % input.block_size);
    }
  }
  return level;
}

}  // namespace quire
