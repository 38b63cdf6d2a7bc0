// Variant: everything that may change a logit between the dot product and the softmax, as plain data for host and
// device.
#pragma once

#include <cstdint>

namespace quire {

enum class AlibiKind : std::uint8_t {
  kNone,
  kLinear,  // slope * (kv_pos - context_len): what vLLM adds; a row-constant shift away from kDistance for causal rows
  kSqrt,    // slope * -sqrt(q_pos - kv_pos) for kv_pos <= q_pos, else 0
  kDistance,  // slope * -|q_pos - kv_pos|: independent of the row, the sensible form beside sinks and in encoders
};

// Trees of draft tokens, one a request. Row r of request i stands for tree node r (row 0 the root, the last accepted
// token) and sits at position context_len + r. Arrays live where the kernel runs; all null when no request carries a
// tree.
struct TreeTerms {
  const std::int32_t* size = nullptr;         // [num_seqs] rows of the request's tree; 0: a plain request
  const std::int64_t* mask_offset = nullptr;  // [num_seqs] first word of the request's mask in `mask`
  const std::uint64_t* mask = nullptr;        // size rows of ceil(size / 64) words; bit c of row r: r may attend c
  const std::int64_t* bias_offset = nullptr;  // [num_seqs] first float of the request's bias in `bias`
  const float* bias = nullptr;  // optional [size, size] row-major, added after ALiBi, not scaled, not capped
};

// The logit of (q_pos, kv_pos, q_head) is, in this order: scale * q.k, softcap, ALiBi, tree bias. The key exists for
// the query if causal, window, chunk and tree mask all keep it, or if an mm-prefix range holds both positions. The sink
// joins the softmax as a logit without a value. Positions: row r of a sequence is at context_len + r, context_len =
// seq_len - query_len.
struct Variant {
  float scale = 1.0f;
  float softcap = 0.0f;            // c > 0: c * tanh(s / c); 0: off
  bool causal = true;              // kv_pos <= q_pos
  std::int32_t window_left = -1;   // keep q_pos - kv_pos <= window_left; -1: off
  std::int32_t window_right = -1;  // keep kv_pos - q_pos <= window_right; -1: off
  std::int32_t chunk = 0;          // c > 0: keep q_pos / c - kv_pos / c <= chunk_lookback (chunked local attention)
  std::int32_t chunk_lookback = 0;
  AlibiKind alibi = AlibiKind::kNone;
  const float* alibi_slopes = nullptr;             // [num_q_heads]
  const float* sinks = nullptr;                    // [num_q_heads] raw logits: not scaled, not capped
  const std::uint8_t* causal_per_seq = nullptr;    // [num_seqs], overrides `causal`: 1 causal, 0 not
  const std::int32_t* mm_prefix_ranges = nullptr;  // [num_seqs, mm_prefix_max_ranges, 2] inclusive (start, end)
  std::int32_t mm_prefix_max_ranges = 0;           // ranges with start >= end are padding
  TreeTerms tree{};
};

}  // namespace quire
