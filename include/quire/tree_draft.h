// What one level of drafting a token tree needs: lengths, rotary positions and slots of the rows that are run again.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "quire/status.h"
#include "quire/tensor.h"
#include "quire/tree.h"

namespace quire {

// Level L (0 .. depth - 2) runs all drafts made so far, the nodes of depths 1 .. L + 1, as the rows of each request and
// so makes the drafts of depth L + 2. Flattened node c (0-based, without the root) is kept at position
// root_position + 1 + c, while its rotary position is root_position + its depth.
struct DraftLevelInput {
  const TokenTree* tree = nullptr;               // in breadth-first order
  std::int32_t level = 0;                        // 0-based; its metadata is build_for_drafting(draft_index = level + 1)
  std::span<const std::int64_t> root_positions;  // [num_reqs] position of each request's last accepted token
  TensorView block_table;                        // int32 [num_reqs, max_blocks] on the host
  std::int32_t block_size = 0;
  std::int64_t num_blocks = 0;
  std::int32_t max_model_len = 0;
};

// Requests with root_position + total drafts of the tree >= max_model_len cannot be drafted: rotary position 0,
// seq_len 1, slots -1.
struct DraftLevel {
  std::int32_t num_reqs = 0;
  std::int32_t query_len = 0;       // rows a request: all drafts so far
  std::int32_t num_new_drafts = 0;  // drafts of this level, the last rows
  std::int32_t max_seq_len = 0;
  std::vector<std::int32_t> query_start_loc;  // [num_reqs + 1]
  std::vector<std::int32_t> seq_lens;         // [num_reqs] root_position + 1 + query_len
  std::vector<std::int64_t> positions;        // [num_reqs * query_len] for the rotary embedding
  std::vector<std::int64_t> slot_mapping;     // [num_reqs * query_len]
};

// Errors: a tree whose nodes are not sorted by depth, a level it does not have, positions beyond the block table, block
// ids out of range.
Result<DraftLevel> make_draft_level(const DraftLevelInput& input);

}  // namespace quire
