// The plain paged-attention kernel: every term, codec, layout, head size and number of streams, one warp a row.
//
// Cost: a row reads its visible keys once for the dot products (each lane a key, so rows of K come through L1 in
// sectors) and once for the values (coalesced); nothing is shared between rows, so group heads read K and V again.
// Bound by L1/L2 bandwidth, about an order of magnitude above the tiled kernels. It is what runs where they do not fit.
#pragma once

#include "cuda/block/rows.h"
#include "kv/addressing.h"
#include "variant/logit.h"
#include "variant/number.h"

namespace quire::cuda {

using Number = Scalar<float>;

constexpr int kPlainWarps = 4;
constexpr int kPlainAccumulators = 16;  // a lane's share of one pass over the value row: 16 * 32 elements

struct PlainRow {
  std::int32_t seq = 0;
  std::int32_t token = 0;
  std::int32_t row = 0;
  std::int32_t q_head = 0;
  std::int32_t stream = 0;
  std::int32_t kv_head = 0;
  std::int32_t context_len = 0;
};

// kv_place with the block id checked; page -1 where it is bad.
__device__ inline KVPlace checked_place(const KVSource& kv, std::int32_t seq, std::int32_t kv_pos,
                                        FaultRecord* record) {
  const KVPlace place = kv_place(kv, seq, kv_pos);
  if (kv.block_table != nullptr && (place.page < 0 || place.page >= kv.num_blocks)) {
    report(record, Fault::kBlock, seq, place.page, kv.num_blocks);
    return {-1, 0};
  }
  return place;
}

// The logit of one key, -inf if the key is hidden.
template <DType kKV>
__device__ float plain_logit(const AttentionArgs& args, const Terms& terms, const PlainRow& row, const float* query,
                             std::int32_t kv_pos, KVPlace place) {
  const At<Number> at{kv_pos, row.context_len + row.row, row.row, row.context_len, row.q_head};
  if (place.page < 0 || !fold_keep<Number>(terms, true, at)) return -INFINITY;
  const KVRows& keys = args.kv.key[row.stream];
  const std::int64_t offset = row_offset(keys, place, row.kv_head);
  float sum = 0.0f;
  for (std::int32_t d = 0; d < args.kv.head_size; ++d) sum += query[d] * load_as_float(keys.data, kKV, offset + d);
  const float factor = args.query_scale * keys.tensor_scale * row_scale(keys, place, row.kv_head);
  return fold_logit<Number>(terms, sum * factor * args.variant.scale, at);
}

// Adds the values of 32 keys (lane i holds key i's weight and place) to the elements [first, first + 512) of the row.
template <DType kKV>
__device__ void add_values(const AttentionArgs& args, const PlainRow& row, float weight, KVPlace place,
                           std::int32_t first, float* sums) {
  const std::int32_t lane = static_cast<std::int32_t>(threadIdx.x % 32);
  const std::int32_t width = args.kv.num_streams * args.kv.head_size_v;
  for (int key = 0; key < 32; ++key) {
    const float share = __shfl_sync(kFullWarp, weight, key);
    if (share == 0.0f) continue;
    const KVPlace at{__shfl_sync(kFullWarp, place.page, key), __shfl_sync(kFullWarp, place.token, key)};
    for (std::int32_t stream = 0; stream < args.kv.num_streams; ++stream) {
      const KVRows& rows = args.kv.value[stream];
      const float scaled = share * rows.tensor_scale * row_scale(rows, at, row.kv_head);
      const std::int64_t offset = row_offset(rows, at, row.kv_head) - stream * args.kv.head_size_v;
#pragma unroll
      for (int i = 0; i < kPlainAccumulators; ++i) {
        const std::int32_t d = first + lane + 32 * i;
        if (d < width && d / args.kv.head_size_v == stream)
          sums[i] += scaled * load_as_float(rows.data, kKV, offset + d);
      }
    }
  }
}

// One pass over the keys for the elements [first, first + 512) of the row; returns the log-sum-exp.
template <DType kKV>
__device__ float plain_pass(const PlainParams& params, const Terms& terms, const PlainRow& row, const float* query,
                            std::int32_t first) {
  const AttentionArgs& args = params.args;
  const std::int32_t lane = static_cast<std::int32_t>(threadIdx.x % 32);
  const KeyRange keys = fold_clip(terms, {0, args.seq_lens[row.seq]}, {row.row, row.row, row.context_len});
  float largest = terms.sink.active() ? terms.sink.sink(row.q_head) : -INFINITY;
  float total = terms.sink.active() ? 1.0f : 0.0f;
  float sums[kPlainAccumulators] = {};
  for (std::int32_t begin = keys.begin; begin < keys.end; begin += 32) {
    const std::int32_t kv_pos = begin + lane;
    const bool inside = kv_pos < keys.end;
    const KVPlace place = inside ? checked_place(args.kv, row.seq, kv_pos, params.record) : KVPlace{-1, 0};
    const float logit = inside ? plain_logit<kKV>(args, terms, row, query, kv_pos, place) : -INFINITY;
    const float raised = fmaxf(largest, warp_max(logit));
    if (raised == -INFINITY) continue;
    const float weight = logit == -INFINITY ? 0.0f : expf(logit - raised);
    const float fade = largest == -INFINITY ? 0.0f : expf(largest - raised);
    total = total * fade + warp_sum(weight);
    largest = raised;
#pragma unroll
    for (float& sum : sums) sum *= fade;
    add_values<kKV>(args, row, weight, place, first, sums);
  }
  const float norm = total > 0.0f || total != total ? 1.0f / total : 0.0f;
  const std::int32_t width = args.kv.num_streams * args.kv.head_size_v;
#pragma unroll
  for (int i = 0; i < kPlainAccumulators; ++i) {
    const std::int32_t d = first + lane + 32 * i;
    if (d < width) store_any(params.target, row.token, row.q_head, d, sums[i] * norm);
  }
  return largest == -INFINITY ? -INFINITY : largest + logf(total);
}

template <DType kKV>
__global__ void __launch_bounds__(kPlainWarps * 32) plain_kernel(const __grid_constant__ PlainParams params) {
  extern __shared__ float plain_shared[];
  const AttentionArgs& args = params.args;
  const std::int32_t warp = static_cast<std::int32_t>(threadIdx.x / 32);
  const std::int32_t lane = static_cast<std::int32_t>(threadIdx.x % 32);
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * (blockDim.x / 32) + warp;
  if (index >= static_cast<std::int64_t>(args.num_tokens) * args.num_q_heads) return;
  PlainRow row;
  row.token = static_cast<std::int32_t>(index / args.num_q_heads);
  row.q_head = static_cast<std::int32_t>(index % args.num_q_heads);
  row.seq = find_seq(args.query_start_loc, args.num_seqs, row.token);
  if (row.seq < 0) return;
  const SeqLengths lengths = seq_lengths(args, row.seq, params.record);
  if (!lengths.valid || row.token < lengths.query_start || lengths.query_len < params.min_query_len) return;
  row.row = row.token - lengths.query_start;
  row.context_len = lengths.context_len();
  row.stream = row.q_head % args.kv.num_streams;
  row.kv_head = row.q_head / (args.num_q_heads / args.kv.num_kv_heads);
  float* query = plain_shared + static_cast<std::int64_t>(warp) * args.kv.head_size;
  const std::int64_t offset = row.token * args.query_token_stride + row.q_head * args.query_head_stride;
#pragma unroll 1
  for (std::int32_t d = lane; d < args.kv.head_size; d += 32) {
    query[d] = load_as_float(args.query, args.query_dtype, offset + d);
  }
  __syncwarp();
  const Terms terms = terms_of(args.variant, row.seq);
  const std::int32_t width = args.kv.num_streams * args.kv.head_size_v;
  float lse = -INFINITY;
  for (std::int32_t first = 0; first < width; first += 32 * kPlainAccumulators) {
    lse = plain_pass<kKV>(params, terms, row, query, first);
  }
  if (args.lse != nullptr && lane == 0) args.lse[row.q_head * args.lse_head_stride + row.token] = lse;
}

}  // namespace quire::cuda
