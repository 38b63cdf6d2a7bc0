// Rows of a batch on the device: which request a token belongs to, its checked lengths, and where results go.
#pragma once

#include "core/convert.h"
#include "cuda/block/guard.h"
#include "cuda/kernel/plain.h"
#include "variant/at.h"

namespace quire::cuda {

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// The checked lengths of one request. An invalid one has no rows.
struct SeqLengths {
  std::int32_t query_start = 0;
  std::int32_t query_len = 0;
  std::int32_t seq_len = 0;
  bool valid = false;

  __device__ std::int32_t context_len() const { return seq_len - query_len; }
};

// Keys that the block table has room for; a contiguous source has no bound of its own.
__device__ inline std::int64_t max_seq_len(const KVSource& kv) {
  return kv.block_table == nullptr ? 0x7fffffff : kv.block_table_stride * kv.block_size;
}

// What the batch says of one request, not checked yet.
struct SeqWords {
  std::int32_t query_begin = 0;
  std::int32_t query_end = 0;
  std::int32_t seq_len = 0;

  __device__ static SeqWords of(const AttentionArgs& args, std::int32_t seq) {
    return {args.query_start_loc[seq], args.query_start_loc[seq + 1], args.seq_lens[seq]};
  }
};

__device__ inline SeqLengths check_lengths(const AttentionArgs& args, std::int32_t seq, const SeqWords& words,
                                           FaultRecord* record) {
  const std::int32_t begin = words.query_begin;
  const std::int32_t end = words.query_end;
  const std::int32_t seq_len = words.seq_len;
  if (begin < 0 || end < begin || end > args.num_tokens) {
    report(record, Fault::kQueryStart, seq, end < begin || begin < 0 ? begin : end, args.num_tokens);
    return {};
  }
  const std::int64_t limit = max_seq_len(args.kv);
  if (seq_len < 0 || seq_len > limit) {
    report(record, Fault::kSeqLen, seq, seq_len, limit);
    return {};
  }
  return {begin, end - begin, seq_len, true};
}

__device__ inline SeqLengths seq_lengths(const AttentionArgs& args, std::int32_t seq, FaultRecord* record) {
  return check_lengths(args, seq, SeqWords::of(args, seq), record);
}

// The request that `token` belongs to, -1 for padding.
__device__ inline std::int32_t find_seq(const std::int32_t* query_start_loc, std::int32_t num_seqs,
                                        std::int32_t token) {
  std::int32_t low = 0;
  std::int32_t high = num_seqs;
  while (low < high) {  // the first seq whose rows end behind the token
    const std::int32_t middle = (low + high) / 2;
    if (query_start_loc[middle + 1] > token) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low < num_seqs && query_start_loc[low] <= token ? low : -1;
}

__device__ inline float warp_max(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value = fmaxf(value, __shfl_xor_sync(kFullWarp, value, offset));
  return value;
}

__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(kFullWarp, value, offset);
  return value;
}

// Two neighbouring elements of a query row. Not inlined, as it knows every dtype, which rows of the usual ones never
// ask.
__device__ __noinline__ inline float2 query_pair(const void* query, DType dtype, std::int64_t at) {
  return make_float2(load_as_float(query, dtype, at), load_as_float(query, dtype, at + 1));
}

__device__ inline void store_value(const RowTarget& target, std::int64_t token, std::int64_t head, std::int32_t d,
                                   float value) {
  if (target.inverse_scale > 0.0f) value = fminf(fmaxf(value * target.inverse_scale, -448.0f), 448.0f);
  store_from_float(target.data, target.dtype, token * target.token_stride + head * target.head_stride + d, value);
}

// The same, not inlined: for kernels that store rows of the usual dtypes by themselves.
__device__ __noinline__ inline void store_any(const RowTarget& target, std::int64_t token, std::int64_t head,
                                              std::int32_t d, float value) {
  store_value(target, token, head, d, value);
}

}  // namespace quire::cuda
