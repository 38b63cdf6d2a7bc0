// validate_batch: every check of a batch that the host can make.
#include <algorithm>
#include <limits>

#include "core/checked.h"
#include "plan/batch.h"

namespace quire {
namespace {

Status check_size(const char* name, std::size_t got, std::int64_t want) {
  if (static_cast<std::int64_t>(got) == want) return {};
  return invalid_argument(std::string(name) + ": want " + std::to_string(want) + " entries, got " +
                          std::to_string(got));
}

// Optional arrays by request are empty or complete.
Status check_optional_size(const char* name, std::size_t got, std::int32_t num_reqs) {
  return got == 0 ? Status() : check_size(name, got, num_reqs);
}

Status check_lengths(const CommonAttentionMetadata& common, const BatchLimits& limits) {
  if (common.query_start_loc_cpu.back() != common.num_actual_tokens) {
    return invalid_argument(
        "query_start_loc: want it to end at num_actual_tokens = " + std::to_string(common.num_actual_tokens) +
        ", got " + std::to_string(common.query_start_loc_cpu.back()));
  }
  std::int32_t longest_query = 0;
  std::int32_t longest_seq = 0;
  for (std::int32_t req = 0; req < common.num_reqs; ++req) {
    const std::int32_t query_len = query_len_of(common, req);
    const std::int32_t seq_len = seq_len_of(common, req);
    if (seq_len < query_len && limits.context == ContextRule::kNonNegative) {
      return invalid_argument(at_request("seq_lens", req) + "want at least its query_len " + std::to_string(query_len) +
                              ", got " + std::to_string(seq_len));
    }
    longest_query = std::max(longest_query, query_len);
    longest_seq = std::max(longest_seq, seq_len);
  }
  if (common.max_query_len < longest_query) {
    return invalid_argument("max_query_len: want at least " + std::to_string(longest_query) + ", got " +
                            std::to_string(common.max_query_len));
  }
  if (common.max_seq_len < longest_seq) {
    return invalid_argument("max_seq_len: want at least " + std::to_string(longest_seq) + ", got " +
                            std::to_string(common.max_seq_len));
  }
  return {};
}

Status check_table_shape(const CommonAttentionMetadata& common) {
  const TensorView& table = common.block_table_tensor;
  QUIRE_RETURN_IF_ERROR(check_tensor(
      table, {.name = "block_table", .dtypes = {DType::kInt32}, .shape = {kAny, kAny}, .last_dim_contiguous = true}));
  if (table.size(0) < common.num_reqs) {
    return invalid_argument("block_table.shape: want at least " + std::to_string(common.num_reqs) + " rows, got " +
                            shape_string(table));
  }
  return {};
}

Status check_limits(const BatchLimits& limits) {
  if (limits.block_size < 1) {
    return invalid_argument("block_size: want at least 1, got " + std::to_string(limits.block_size));
  }
  if (limits.num_blocks < 0) {
    return invalid_argument("num_blocks: want at least 0, got " + std::to_string(limits.num_blocks));
  }
  if (!checked_mul(limits.num_blocks, limits.block_size)) {
    return resource_exhausted("num_blocks * block_size: want a product below 2^63, got " +
                              std::to_string(limits.num_blocks) + " * " + std::to_string(limits.block_size));
  }
  return {};
}

Status check_blocks(const CommonAttentionMetadata& common, const BatchLimits& limits) {
  const TensorView& table = common.block_table_tensor;
  for (std::int32_t req = 0; req < common.num_reqs; ++req) {
    const std::int64_t used = ceil_div(seq_len_of(common, req), limits.block_size);
    if (used > table.size(1)) {
      return out_of_range(at_request("block_table", req) + "want " + std::to_string(used) + " blocks for seq_len " +
                          std::to_string(seq_len_of(common, req)) + ", got a table of " +
                          std::to_string(table.size(1)));
    }
    if (!is_on_host(table)) continue;
    const std::int32_t* row = table.as<const std::int32_t>() + req * table.stride(0);
    for (std::int64_t i = 0; i < used; ++i) {
      if (row[i] >= 0 && row[i] < limits.num_blocks) continue;
      return out_of_range(at_request("block_table", req) + "block " + std::to_string(i) + ": want an id in [0, " +
                          std::to_string(limits.num_blocks) + "), got " + std::to_string(row[i]));
    }
  }
  return {};
}

Status check_mm_ranges(const CommonAttentionMetadata& common) {
  if (common.mm_range_start.empty() && common.mm_ranges.empty()) return {};
  QUIRE_RETURN_IF_ERROR(
      check_size("mm_range_start", common.mm_range_start.size(), static_cast<std::int64_t>(common.num_reqs) + 1));
  std::int64_t previous = 0;
  for (std::int32_t req = 0; req <= common.num_reqs; ++req) {
    const std::int64_t start = common.mm_range_start[static_cast<std::size_t>(req)];
    const std::int64_t last = static_cast<std::int64_t>(common.mm_ranges.size());
    if (start < previous || start > last) {
      return invalid_argument(at_request("mm_range_start", req) + "want " + std::to_string(previous) + " to " +
                              std::to_string(last) + ", got " + std::to_string(start));
    }
    for (std::int64_t i = previous; i < start; ++i) {
      const MmRange range = common.mm_ranges[static_cast<std::size_t>(i)];
      if (range.start >= range.end) continue;
      if (range.start < 0 || range.end == std::numeric_limits<std::int32_t>::max()) {
        return invalid_argument(at_request("mm_ranges", req - 1) + "want positions in [0, 2^31 - 1), got (" +
                                std::to_string(range.start) + ", " + std::to_string(range.end) + ")");
      }
    }
    previous = start;
  }
  return {};
}

Status check_trees(const CommonAttentionMetadata& common) {
  for (std::int32_t req = 0; req < static_cast<std::int32_t>(common.trees.size()); ++req) {
    const TokenTree* tree = common.trees[static_cast<std::size_t>(req)];
    if (tree == nullptr || tree->size() == query_len_of(common, req)) continue;
    return invalid_argument(at_request("trees", req) + "want a tree of its query_len " +
                            std::to_string(query_len_of(common, req)) + ", got one of " + std::to_string(tree->size()) +
                            " nodes");
  }
  return {};
}

Status check_device_copies(const CommonAttentionMetadata& common) {
  if (common.query_start_loc) {
    QUIRE_RETURN_IF_ERROR(
        check_tensor(common.query_start_loc, {.name = "query_start_loc",
                                              .dtypes = {DType::kInt32},
                                              .shape = {static_cast<std::int64_t>(common.num_reqs) + 1}}));
  }
  if (common.seq_lens) {
    QUIRE_RETURN_IF_ERROR(
        check_tensor(common.seq_lens, {.name = "seq_lens", .dtypes = {DType::kInt32}, .shape = {common.num_reqs}}));
  }
  return {};
}

Status check_optional_sizes(const CommonAttentionMetadata& common) {
  const std::int32_t reqs = common.num_reqs;
  QUIRE_RETURN_IF_ERROR(check_optional_size("num_computed_tokens", common.num_computed_tokens_cpu.size(), reqs));
  QUIRE_RETURN_IF_ERROR(check_optional_size("causal_per_seq", common.causal_per_seq.size(), reqs));
  QUIRE_RETURN_IF_ERROR(check_optional_size("encoder_seq_lens", common.encoder_seq_lens_cpu.size(), reqs));
  QUIRE_RETURN_IF_ERROR(check_optional_size("is_prefilling", common.is_prefilling.size(), reqs));
  return check_optional_size("trees", common.trees.size(), reqs);
}

}  // namespace

Status check_host_arrays(const CommonAttentionMetadata& common) {
  if (common.num_reqs < 0) {
    return invalid_argument("num_reqs: want at least 0, got " + std::to_string(common.num_reqs));
  }
  QUIRE_RETURN_IF_ERROR(
      check_size("query_start_loc", common.query_start_loc_cpu.size(), static_cast<std::int64_t>(common.num_reqs) + 1));
  QUIRE_RETURN_IF_ERROR(check_size("seq_lens", common.seq_lens_cpu.size(), common.num_reqs));
  if (common.query_start_loc_cpu[0] != 0) {
    return invalid_argument("query_start_loc: want it to start with 0, got " +
                            std::to_string(common.query_start_loc_cpu[0]));
  }
  for (std::int32_t req = 0; req < common.num_reqs; ++req) {
    const std::int32_t start = common.query_start_loc_cpu[static_cast<std::size_t>(req)];
    const std::int32_t end = common.query_start_loc_cpu[static_cast<std::size_t>(req) + 1];
    if (end < start) {
      return invalid_argument(at_request("query_start_loc", req) + "want an end >= its start " + std::to_string(start) +
                              ", got " + std::to_string(end));
    }
    if (seq_len_of(common, req) < 0) {
      return invalid_argument(at_request("seq_lens", req) + "want at least 0, got " +
                              std::to_string(seq_len_of(common, req)));
    }
  }
  return {};
}

Status check_host_block_table(const CommonAttentionMetadata& common) {
  QUIRE_RETURN_IF_ERROR(check_table_shape(common));
  if (is_on_host(common.block_table_tensor)) return {};
  return unsupported("block_table: want a tensor on the host, got one on " +
                     device_name(common.block_table_tensor.device));
}

Result<std::int64_t> block_of(const CommonAttentionMetadata& common, std::int32_t req, std::int64_t position,
                              const BatchLimits& limits) {
  const TensorView& table = common.block_table_tensor;
  const std::int64_t index = position / limits.block_size;
  if (index >= table.size(1)) {
    return out_of_range(at_request("block_table", req) + "want a block for position " + std::to_string(position) +
                        ", got a table of " + std::to_string(table.size(1)) + " blocks of " +
                        std::to_string(limits.block_size));
  }
  const std::int64_t block = table.as<const std::int32_t>()[req * table.stride(0) + index];
  if (block < 0 || block >= limits.num_blocks) {
    return out_of_range(at_request("block_table", req) + "block " + std::to_string(index) + ": want an id in [0, " +
                        std::to_string(limits.num_blocks) + "), got " + std::to_string(block));
  }
  return block;
}

Status check_slots(const CommonAttentionMetadata& common, const BatchLimits& limits, std::int64_t count) {
  const TensorView& slots = common.slot_mapping;
  QUIRE_RETURN_IF_ERROR(check_tensor(slots, {.name = "slot_mapping", .dtypes = {DType::kInt64}, .shape = {kAny}}));
  if (slots.size(0) < count) {
    return invalid_argument("slot_mapping.shape: want at least " + std::to_string(count) + " slots, got " +
                            shape_string(slots));
  }
  if (!is_on_host(slots)) return {};
  const std::int64_t end = limits.num_blocks * limits.block_size;
  for (std::int64_t token = 0; token < count; ++token) {
    const std::int64_t slot = slots.as<const std::int64_t>()[token];
    if (slot >= -1 && slot < end) continue;
    const auto& starts = common.query_start_loc_cpu;
    const std::int64_t req = std::upper_bound(starts.begin(), starts.end(), token) - starts.begin() - 1;
    const std::string where = req < common.num_reqs ? at_request("slot_mapping", req) : "slot_mapping: ";
    return out_of_range(where + "token " + std::to_string(token) + ": want a slot in [-1, " + std::to_string(end) +
                        "), got " + std::to_string(slot));
  }
  return {};
}

Status validate_batch(const CommonAttentionMetadata& common, const BatchLimits& limits) {
  QUIRE_RETURN_IF_ERROR(check_host_arrays(common));
  QUIRE_RETURN_IF_ERROR(check_optional_sizes(common));
  QUIRE_RETURN_IF_ERROR(check_lengths(common, limits));
  QUIRE_RETURN_IF_ERROR(check_device_copies(common));
  QUIRE_RETURN_IF_ERROR(check_mm_ranges(common));
  QUIRE_RETURN_IF_ERROR(check_trees(common));
  if (common.block_table_tensor || common.slot_mapping) QUIRE_RETURN_IF_ERROR(check_limits(limits));
  if (common.block_table_tensor) {
    QUIRE_RETURN_IF_ERROR(check_table_shape(common));
    QUIRE_RETURN_IF_ERROR(check_blocks(common, limits));
  }
  if (common.slot_mapping) QUIRE_RETURN_IF_ERROR(check_slots(common, limits, common.num_actual_tokens));
  return {};
}

}  // namespace quire
