// Slots of new tokens from block tables.
#include <algorithm>

#include "plan/batch.h"

namespace quire {
namespace {

Status check_block_size(std::int32_t block_size) {
  if (block_size >= 1) return {};
  return invalid_argument("block_size: want at least 1, got " + std::to_string(block_size));
}

}  // namespace

Status compute_slot_mapping(const CommonAttentionMetadata& common, std::int32_t block_size, std::int64_t num_blocks,
                            std::span<std::int64_t> slot_mapping) {
  QUIRE_RETURN_IF_ERROR(check_host_arrays(common));
  QUIRE_RETURN_IF_ERROR(check_block_size(block_size));
  const std::int64_t num_tokens = common.query_start_loc_cpu.back();
  if (static_cast<std::int64_t>(slot_mapping.size()) < num_tokens) {
    return invalid_argument("slot_mapping: want at least " + std::to_string(num_tokens) + " slots, got " +
                            std::to_string(slot_mapping.size()));
  }
  if (num_tokens > 0) QUIRE_RETURN_IF_ERROR(check_host_block_table(common));
  const BatchLimits limits{.num_blocks = num_blocks, .block_size = block_size};
  std::size_t token = 0;
  for (std::int32_t req = 0; req < common.num_reqs; ++req) {
    const std::int32_t seq_len = seq_len_of(common, req);
    const std::int32_t context_len = seq_len - query_len_of(common, req);
    if (context_len < 0) {
      return invalid_argument(at_request("seq_lens", req) + "want at least its query_len " +
                              std::to_string(query_len_of(common, req)) + ", got " + std::to_string(seq_len));
    }
    for (std::int32_t position = context_len; position < seq_len; ++position) {
      QUIRE_ASSIGN_OR_RETURN(const std::int64_t block, block_of(common, req, position, limits));
      slot_mapping[token++] = block * block_size + position % block_size;
    }
  }
  std::fill(slot_mapping.begin() + static_cast<std::ptrdiff_t>(token), slot_mapping.end(), -1);
  return {};
}

Status append_windowed_slots(const WindowedSlotsInput& input, std::vector<std::int64_t>& slots) {
  QUIRE_RETURN_IF_ERROR(check_block_size(input.block_size));
  if (input.context_len < 0 || input.query_len < 0) {
    return invalid_argument("context_len and query_len: want at least 0, got " + std::to_string(input.context_len) +
                            " and " + std::to_string(input.query_len));
  }
  const std::int64_t seq_len = static_cast<std::int64_t>(input.context_len) + input.query_len;
  const std::int64_t blocks = (seq_len + input.block_size - 1) / input.block_size;
  if (input.query_len > 0 && static_cast<std::int64_t>(input.block_table.size()) < blocks) {
    return out_of_range("block_table: want " + std::to_string(blocks) + " blocks for " + std::to_string(seq_len) +
                        " tokens, got " + std::to_string(input.block_table.size()));
  }
  const std::int64_t first_stored = input.prompt_window > 0 ? std::max(0, input.query_len - input.prompt_window) : 0;
  for (std::int64_t position = input.context_len; position < seq_len; ++position) {
    const std::int64_t block = input.block_table[static_cast<std::size_t>(position / input.block_size)];
    slots.push_back(position < first_stored ? -1 : block * input.block_size + position % input.block_size);
  }
  return {};
}

}  // namespace quire
