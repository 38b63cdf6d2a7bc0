// AttentionPlan: the work items of one step, made once and run by every layer on CPU threads or CUDA blocks.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "quire/status.h"
#include "quire/variant.h"

namespace quire {

// Keys are folded in splits of this many positions, counted from position 0, each split with its own online softmax,
// and the splits of a row are merged in ascending order. The bounds depend on positions alone, so a row's result has
// the same bits however its prompt was chunked, whatever it was batched with and however many threads ran.
inline constexpr std::int32_t kSplitTokens = 1024;

// Some query tokens of one sequence against some of its keys; it stands for all kv_heads (a kernel runs it once a
// kv_head).
struct WorkItem {
  std::int32_t seq = 0;
  std::int32_t token_begin = 0;  // first row inside the sequence (0 .. query_len)
  std::int32_t token_count = 0;
  std::int32_t kv_begin = 0;  // keys [kv_begin, kv_end); kv_begin is a multiple of kSplitTokens
  std::int32_t kv_end = 0;
  std::int32_t partial =
      -1;  // >= 0: leaves its state in partial slot `partial` (of each kv_head); -1: writes the output
};

// Folds the partials of the same rows, in ascending key order, into the output.
struct MergeItem {
  std::int32_t seq = 0;
  std::int32_t token_begin = 0;
  std::int32_t token_count = 0;
  std::int32_t first_partial = 0;
  std::int32_t num_partials = 0;
};

struct AttentionPlan {
  std::vector<WorkItem> items;  // most expensive first
  std::vector<MergeItem> merges;
  std::int32_t num_partials = 0;        // slots a kv_head
  std::int32_t max_partial_tokens = 0;  // token_count of the largest item that leaves a partial
};

struct PlanConfig {
  std::int32_t rows_per_token = 1;  // q_heads that share a K/V load: group size x streams
  std::int32_t tile_rows = 128;     // rows (tokens x rows_per_token) an item should have at most; at least one token
  std::int32_t split_rows = 64;     // sequences of at most this many rows, or of one token, are split over their keys
};

// query_start_loc [num_seqs + 1] and seq_lens [num_seqs] are host arrays that have passed validation; the arrays that
// `variant` points to (trees, ranges, causal flags) are host arrays too, its arrays by head are not read. Splits that
// no row of an item can see (window, chunk) are left out. Rows whose keys lie in a single split are written directly: a
// kernel folds every item split by split, so the result has the same bits as a merge. A sequence without rows gets no
// item; rows without keys still get one, so that their output becomes 0. Items with partials of the same rows have
// consecutive slots in ascending key order, from the MergeItem's first_partial on.
AttentionPlan make_attention_plan(const PlanConfig& config, std::span<const std::int32_t> query_start_loc,
                                  std::span<const std::int32_t> seq_lens, const Variant& variant);

}  // namespace quire
