// AttentionArgs: one attention call as pointers, strides and a Variant; the form that every kernel and the reference
// take.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quire/device.h"
#include "quire/dtype.h"
#include "quire/variant.h"

namespace quire {

// Where the rows of K (or V) are. The row of (page, token, kv_head) starts at
//   data + page * page_stride + token * token_stride + head * head_stride     (elements; the row itself is contiguous)
// and, when `scales` is set, its float32 scale is at the same three indices of the scale strides (floats).
// Stored values mean: element * tensor_scale * (scales ? row scale : 1).
struct KVRows {
  void* data = nullptr;  // read by attention, written by the cache update
  std::int64_t page_stride = 0;
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;
  float* scales = nullptr;
  std::int64_t scale_page_stride = 0;
  std::int64_t scale_token_stride = 0;
  std::int64_t scale_head_stride = 0;
  float tensor_scale = 1.0f;
};

// Keys and values of all sequences, paged or contiguous.
// Paged: the token at position p of sequence i is in page block_table[i * block_table_stride + p / block_size] at p %
// block_size. Contiguous (block_table null): it is row kv_start[i] + p of page 0. One stream is ordinary attention. Two
// streams are differential attention: stream s has its own keys, and the values are the concatenation [value[0]
// value[1]], seen by both.
struct KVSource {
  DType dtype = DType::kFloat32;
  std::int32_t num_streams = 1;
  KVRows key[2] = {};
  KVRows value[2] = {};
  std::int32_t num_kv_heads = 0;  // per stream
  std::int32_t head_size = 0;     // of a key row
  std::int32_t head_size_v = 0;   // of one value row; the output row has num_streams * head_size_v elements
  const std::int32_t* block_table = nullptr;
  std::int64_t block_table_stride = 0;
  std::int64_t num_blocks = 0;
  std::int32_t block_size = 1;
  const std::int32_t* kv_start = nullptr;  // [num_seqs], contiguous form only
  Device device = {};                      // where the rows are
};

// The tail of differential attention: out = RMSNorm(O1 - lambda * O2; weight, eps) * post_scale over the 2 *
// head_size_v row.
struct DifferentialCombine {
  float lambda = 0.0f;
  float post_scale = 1.0f;  // 1 - lambda_init
  float eps = 1e-5f;
  const float* subln_weight =
      nullptr;  // [2 * head_size_v]; null: no normalisation and no post_scale (plain O1 - lambda * O2)
};

// Query heads: one stream: q_head h uses kv_head h / (num_q_heads / num_kv_heads). Two streams: q_head 2p + s is pair p
// of stream s, pair p uses kv_head p / (num_q_heads / 2 / num_kv_heads), and the pair's row of 2 * head_size_v outputs
// starts at output head 2p (head_size_v elements an output head, so pair rows need output_head_stride == head_size_v).
struct AttentionArgs {
  const void* query = nullptr;  // [num_tokens, num_q_heads, head_size], last dimension contiguous
  DType query_dtype = DType::kFloat32;
  std::int64_t query_token_stride = 0;
  std::int64_t query_head_stride = 0;
  float query_scale = 1.0f;  // multiplies queries; for fp8 queries

  void* output = nullptr;                // [num_tokens, num_q_heads, head_size_v], last dimension contiguous
  DType output_dtype = DType::kFloat32;  // an activation type, or float8_e4m3 with one of the two scales below
  std::int64_t output_token_stride = 0;
  std::int64_t output_head_stride = 0;
  float output_scale = 0.0f;  // > 0: store e4m3(clamp(out * (1 / output_scale), +-448))
  float* output_block_scale =
      nullptr;  // [num_tokens, ceil(num_q_heads * head_size_v / 128)]: absmax / 448 of each group of 128
  std::int64_t output_block_scale_stride = 0;
  float* lse = nullptr;  // optional [num_q_heads, num_tokens]: natural log of the softmax denominator, sink included;
                         // -inf if no key
  std::int64_t lse_head_stride = 0;

  std::int32_t num_seqs = 0;
  std::int32_t num_tokens = 0;  // rows from here on are padding: neither read nor written
  std::int32_t num_q_heads = 0;
  const std::int32_t* query_start_loc = nullptr;  // [num_seqs + 1], from 0 to num_tokens
  const std::int32_t* seq_lens = nullptr;         // [num_seqs] keys of each sequence, the new tokens included

  KVSource kv = {};
  Variant variant = {};
  DifferentialCombine differential = {};
};

}  // namespace quire
