// A small batch that owns its arrays, for the tests of plans and metadata.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "quire/metadata.h"

namespace quire {

// Blocks are handed out one after another from 1 on, so that a block's id differs from its index.
class Batch {
 public:
  Batch(std::vector<std::int32_t> query_lens, std::vector<std::int32_t> lens, std::int32_t block_tokens = 4)
      : seq_lens(std::move(lens)), block_size(block_tokens) {
    for (std::int32_t query_len : query_lens) query_start_loc.push_back(query_start_loc.back() + query_len);
    for (std::int32_t seq_len : seq_lens) width = std::max(width, (seq_len + block_size - 1) / block_size + 1);
    for (std::size_t req = 0; req < seq_lens.size(); ++req) {
      for (std::int32_t i = 0; i < width; ++i) block_table.push_back(num_blocks++);
      for (std::int32_t p = seq_lens[req] - query_lens[req]; p < seq_lens[req]; ++p) {
        slots.push_back(p < 0 ? -1 : slot_of(static_cast<std::int32_t>(req), p));
      }
    }
  }

  std::int64_t slot_of(std::int32_t req, std::int32_t position) const {
    const auto index = static_cast<std::size_t>(req * width + position / block_size);
    return static_cast<std::int64_t>(block_table[index]) * block_size + position % block_size;
  }

  CommonAttentionMetadata common() {
    CommonAttentionMetadata out;
    out.query_start_loc_cpu = query_start_loc;
    out.seq_lens_cpu = seq_lens;
    out.num_reqs = static_cast<std::int32_t>(seq_lens.size());
    out.num_actual_tokens = query_start_loc.back();
    for (std::size_t i = 0; i < seq_lens.size(); ++i) {
      out.max_query_len = std::max(out.max_query_len, query_start_loc[i + 1] - query_start_loc[i]);
      out.max_seq_len = std::max(out.max_seq_len, seq_lens[i]);
    }
    out.block_table_tensor = make_tensor(block_table.data(), DType::kInt32, {out.num_reqs, width}).value();
    out.slot_mapping = make_tensor(slots.data(), DType::kInt64, {static_cast<std::int64_t>(slots.size())}).value();
    return out;
  }

  BatchLimits limits() const { return {.num_blocks = num_blocks, .block_size = block_size}; }

  std::vector<std::int32_t> query_start_loc{0};
  std::vector<std::int32_t> seq_lens;
  std::vector<std::int32_t> block_table;
  std::vector<std::int64_t> slots;
  std::int32_t block_size;
  std::int32_t width = 1;
  std::int32_t num_blocks = 1;
};

}  // namespace quire
