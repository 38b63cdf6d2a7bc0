// The terms of a segment's rows on fragments of scores.
//
// What one row sees is an interval of keys (causal, window and chunk clip it; mm-prefix ranges are the plain kernel's),
// so masking is two comparisons a score. Only tree nodes and terms that change logits take the general fold.
#pragma once

#include "cuda/block/schedule.h"
#include "variant/number.h"

namespace quire::cuda {

struct TileTerms {
  Terms terms;
  KeyRange keys;      // that may be seen
  KeyRange interior;  // that every row sees
  std::int32_t context_len = 0;
  bool has_logit_terms = false;
};

__device__ inline TileTerms tile_terms(const AttentionArgs& args, const Segment& segment) {
  TileTerms how;
  how.terms = split_terms(args, segment.rows.seq);
  how.keys = {segment.rows.keys.begin, segment.keys.end};
  how.context_len = segment.rows.lengths.context_len();
  how.interior = fold_interior(
      how.terms, how.keys,
      {segment.rows.first_token, segment.rows.first_token + segment.rows.num_tokens - 1, how.context_len});
  how.has_logit_terms = has_logit_terms(how.terms);
  return how;
}

// The keys that row `row` of the request sees, but for a tree's mask. Not inlined: it is asked once a segment and row.
__device__ __noinline__ inline KeyRange keys_of_row(const TileTerms& how, std::int32_t row) {
  return fold_clip(how.terms, how.keys, {row, row, how.context_len});
}

// The logit in units of log 2 of a scaled product, -inf where the key is hidden. Not inlined: most tiles never call it.
__device__ __noinline__ inline float logit_of(const TileTerms& how, std::int32_t kv_pos, std::int32_t row,
                                              std::int32_t q_head, float score) {
  using Number = Scalar<float>;
  const At<Number> at{kv_pos, how.context_len + row, row, how.context_len, q_head};
  const bool inside = kv_pos >= how.keys.begin && kv_pos < how.keys.end;
  if (!inside || !fold_keep<Number>(how.terms, true, at)) return -INFINITY;
  return how.has_logit_terms ? fold_logit<Number>(how.terms, score, at) * kLog2E : score;
}

// Which of `fragments` * 2 keys (key 2 * n + b is first + 8 * n + b) a tree of at most 64 nodes lets a row see, as
// bits. Not inlined: only the last tiles of a request hold nodes.
__device__ __noinline__ inline std::uint32_t tree_keys(const TileTerms& how, std::int32_t first, std::int32_t row,
                                                       int fragments) {
  const terms::Tree& tree = how.terms.tree;
  const std::uint64_t mask = row < tree.size ? tree.mask[row] : 0u;
  std::uint32_t seen = 0;
  for (int i = 0; i < 2 * fragments; ++i) {
    const std::int32_t node = first + i / 2 * 8 + i % 2 - how.context_len;
    const bool visible = node < 0 || (row < tree.size ? node < tree.size && (mask >> node & 1u) != 0 : node <= row);
    seen |= visible ? 1u << i : 0u;
  }
  return seen;
}

// Scores of a thread's two rows (token, q_head and seen keys each) against kFragments * 8 keys from `first_key` on, to
// logits in units of log 2; hidden keys to -inf.
template <int kFragments, class Row>
__device__ QUIRE_INLINE void apply_terms(const TileTerms& how, std::int32_t first_key, const Row (&rows)[2],
                                         float (&scores)[kFragments][4]) {
  const std::int32_t last_key = first_key + 8 * kFragments;
  const bool in_tree = how.terms.tree.active() && last_key > how.context_len;
  const bool masked = first_key < how.interior.begin || last_key > how.interior.end;
  const std::int32_t first = first_key + static_cast<std::int32_t>(threadIdx.x % 4) * 2;
  if (how.has_logit_terms || (in_tree && how.terms.tree.size > 64)) {
#pragma unroll
    for (int n = 0; n < kFragments; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        scores[n][i] = logit_of(how, first + 8 * n + i % 2, rows[i / 2].row, rows[i / 2].q_head, scores[n][i]);
      }
    }
  } else if (masked || in_tree) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::uint32_t nodes = in_tree ? tree_keys(how, first, rows[half].row, kFragments) : ~0u;
#pragma unroll
      for (int n = 0; n < kFragments; ++n) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          const std::int32_t kv_pos = first + 8 * n + i % 2;
          const bool visible = kv_pos >= rows[half].seen.begin && kv_pos < rows[half].seen.end;
          if (!visible || (nodes >> (2 * n + i % 2) & 1u) == 0) scores[n][i] = -INFINITY;
        }
      }
    }
  }
}

}  // namespace quire::cuda
