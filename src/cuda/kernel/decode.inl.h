// The decode kernel: few query rows a request against a long paged cache.
//
// Cost: every visible K and V element is read once, by 16-byte asynchronous copies through the block table, and shared
// by all q_heads of its kv head and all tokens of the request (up to 32 rows); 4 * head_size flops a row and key run as
// m16n8k16 products of 16 keys and 8 rows. Bound by memory: a multiprocessor keeps 96 KB and more under way. Each of
// four warps takes every fourth 16-key tile of a segment with a ring of its own, so the main loop has no barrier; 8-bit
// elements become float16 in registers. The warps' results are folded once a segment.
#pragma once

#include "cuda/block/decode_tile.h"
#include "cuda/block/decode_work.h"
#include "cuda/block/finish.h"
#include "cuda/kernel/decode.h"
#include "cuda/ptx/dependent.h"

namespace quire::cuda {

// What all tiles of a segment share.
struct DecodeCall {
  TileTerms terms;
  bool scaled = false;   // keys and values have row scales
  bool one_row = false;  // a single token and plain masks: terms.keys are the keys that it sees
  float factor[2] = {};  // of the products of a stream, to units of log 2 (natural ones when terms change logits)
  std::int32_t group = 1;
  std::uint32_t shift_k = 0;  // DecodeLoader's
  std::uint32_t shift_v = 0;
};

// What a row of a request of at most 32 tokens sees.
struct RowView {
  KeyRange seen;
  std::uint32_t nodes = ~0u;  // of the request's own tokens
};

// Not inlined: few tiles of a long cache are masked.
__device__ __noinline__ inline RowView view_of_row(const TileTerms& how, std::int32_t row) {
  RowView view{fold_clip(how.terms, how.keys, {row, row, how.context_len})};
  const terms::Tree& tree = how.terms.tree;
  if (tree.active()) {
    view.nodes = row < tree.size ? static_cast<std::uint32_t>(tree.mask[static_cast<std::int64_t>(row) * tree.words()])
                                 : ~0u >> (31 - min(row, 31));
    if (row < tree.size && tree.size < 32) view.nodes &= (1u << tree.size) - 1u;
  }
  return view;
}

// Scores of a stream's row tiles to logits in units of log 2, hidden keys to -inf. A single token's keys are the
// segment's; else each lane finds out what one row sees, as nothing of it is kept from tile to tile.
template <class Shape>
__device__ QUIRE_INLINE void fold_terms(const DecodeCall& call, const Segment& segment, std::int32_t first_key,
                                        int stream, float (&scores)[Shape::kTiles][4]) {
  const TileTerms& how = call.terms;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const std::int32_t key = first_key + key_of<Shape>(lane / 4);
  const bool by_row = !call.one_row && !how.has_logit_terms;
  RowView view{how.keys};
  if (by_row) view = view_of_row(how, decode_row(segment, call.group, lane, 1, 0).row);
#pragma unroll
  for (int tile = stream * Shape::kRowTiles; tile < (stream + 1) * Shape::kRowTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::int32_t kv_pos = key + i / 2 * 8;
      const std::int32_t r = tile % Shape::kRowTiles * 8 + lane % 4 * 2 + i % 2;
      if (!call.one_row && how.has_logit_terms) {
        const DecodeRow at = decode_row(segment, call.group, r, Shape::kStreams, stream);
        scores[tile][i] = logit_of(how, kv_pos, at.row, at.q_head, scores[tile][i]);
        continue;
      }
      RowView mine = view;
      if (by_row) {
        mine.seen = {__shfl_sync(kFullWarp, view.seen.begin, r), __shfl_sync(kFullWarp, view.seen.end, r)};
        mine.nodes = __shfl_sync(kFullWarp, view.nodes, r);
      }
      const std::int32_t node = kv_pos - how.context_len;
      const bool visible = kv_pos >= mine.seen.begin && kv_pos < mine.seen.end;
      if (!visible || (by_row && node >= 0 && (mine.nodes >> (node & 31) & 1u) == 0)) scores[tile][i] = -INFINITY;
    }
  }
}

// One online softmax step of a row tile: scores become weights, the state moves to the new maximum if there is one.
template <class Shape>
__device__ QUIRE_INLINE void softmax_step(DecodeState<Shape>& state, int tile, float (&scores)[4]) {
  float top[2] = {fmaxf(scores[0], scores[2]), fmaxf(scores[1], scores[3])};
  if (__any_sync(kFullWarp, top[0] > state.largest[tile][0] || top[1] > state.largest[tile][1])) {
    float fade[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int offset = 4; offset < 32; offset *= 2) top[i] = fmaxf(top[i], __shfl_xor_sync(kFullWarp, top[i], offset));
      const float raised = fmaxf(state.largest[tile][i], top[i]);
      fade[i] = raised == -INFINITY ? 1.0f : ptx::exp2_fast(state.largest[tile][i] - raised);
      state.largest[tile][i] = raised;
      state.sum[tile][i] *= fade[i];
    }
#pragma unroll
    for (int j = 0; j < Shape::kDv / 16; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) state.values[tile][j][i] *= fade[i % 2];
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float largest = state.largest[tile][i % 2];
    scores[i] = ptx::exp2_fast(scores[i] - (largest == -INFINITY ? 0.0f : largest));
    state.sum[tile][i % 2] += scores[i];
  }
}

// Raises state.unit to the largest of the tile's row scales of values (and rescales what is there); `shares` of this
// thread's two keys become relative to it.
template <class Shape>
__device__ QUIRE_INLINE void raise_unit(DecodeState<Shape>& state, int stream, float (&shares)[2]) {
  float top = fmaxf(shares[0], shares[1]);
  if (__any_sync(kFullWarp, top > state.unit[stream])) {
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2) top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, offset));
    const float fade = state.unit[stream] / top;
    state.unit[stream] = top;
    state.inverse_unit[stream] = 1.0f / top;
#pragma unroll
    for (int tile = 0; tile < Shape::kTiles; ++tile) {
#pragma unroll
      for (int j = 0; j < Shape::kDvPart / 16; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) state.values[tile][stream * Shape::kDvPart / 16 + j][i] *= fade;
      }
    }
  }
#pragma unroll
  for (float& share : shares) share *= state.inverse_unit[stream];
}

// The two row scales of a thread's keys, `pitch` bytes apart from key to key.
template <class Shape>
__device__ QUIRE_INLINE void load_scales(std::uint32_t from, int pitch, float (&scales)[2]) {
  const int key = key_of<Shape>(static_cast<int>(threadIdx.x % 32 / 4));
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    std::uint32_t word[1];
    ptx::load_shared(word, from + static_cast<std::uint32_t>((key + 8 * half) * pitch));
    scales[half] = __uint_as_float(word[0]);
  }
}

// Scores of a tile of keys, in logits.
template <class Shape, bool kInline>
__device__ QUIRE_INLINE void score_tile(const DecodeCall& call, const Segment& segment, std::int32_t first_key,
                                        std::uint32_t stage, const DecodeState<Shape>& state,
                                        float (&scores)[Shape::kTiles][4]) {
  const TileTerms& how = call.terms;
  const bool masked = first_key < how.interior.begin || first_key + Shape::kKeys > how.interior.end;
#pragma unroll
  for (int stream = 0; stream < Shape::kStreams; ++stream) {
    const std::uint32_t keys = stage + static_cast<std::uint32_t>(stream * Shape::kKeys * Shape::kPitchK);
    float scales[2] = {1.0f, 1.0f};
    if (Shape::kBytes == 1 && call.scaled) {
      if constexpr (kInline) {
        load_scales<Shape>(keys + call.shift_k + Shape::kD, Shape::kPitchK, scales);
      } else {
        load_scales<Shape>(stage + static_cast<std::uint32_t>(Shape::kStageBytes - Shape::kScaleBytes + stream * 128),
                           4, scales);
      }
    }
#pragma unroll
    for (int tile = stream * Shape::kRowTiles; tile < (stream + 1) * Shape::kRowTiles; ++tile) {
#pragma unroll
      for (float& score : scores[tile]) score = 0.0f;
    }
    score_stream<Shape, kInline>(state, keys + (kInline ? call.shift_k : 0), stream, scores);
#pragma unroll
    for (int tile = stream * Shape::kRowTiles; tile < (stream + 1) * Shape::kRowTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        scores[tile][i] *=
            Shape::kBytes == 1 ? call.factor[stream] * state.lift[tile][i % 2] * scales[i / 2] : call.factor[stream];
      }
    }
    if (masked || how.has_logit_terms) fold_terms<Shape>(call, segment, first_key, stream, scores);
  }
}

// One tile of 16 keys for all row tiles.
template <class Shape, bool kInline>
__device__ QUIRE_INLINE void fold_tile(const DecodeCall& call, const Segment& segment, std::int32_t first_key,
                                       std::uint32_t stage, DecodeState<Shape>& state) {
  using T = DecodeNumber<Shape>;
  const std::uint32_t tile_values = stage + static_cast<std::uint32_t>(Shape::kStreams * Shape::kKeys * Shape::kPitchK);
  float scores[Shape::kTiles][4];
  score_tile<Shape, kInline>(call, segment, first_key, stage, state, scores);
#pragma unroll
  for (int tile = 0; tile < Shape::kTiles; ++tile) softmax_step(state, tile, scores[tile]);
#pragma unroll
  for (int part = 0; part < Shape::kStreams; ++part) {
    float shares[2] = {1.0f, 1.0f};
    if (Shape::kBytes == 1 && call.scaled) {
      if constexpr (kInline) {
        load_scales<Shape>(tile_values + call.shift_v + Shape::kDv, Shape::kPitchV, shares);
      } else {
        load_scales<Shape>(
            stage + static_cast<std::uint32_t>(Shape::kStageBytes - Shape::kScaleBytes + part * 128 + 64), 4, shares);
      }
      raise_unit(state, part, shares);
    }
    std::uint32_t weights[Shape::kTiles][2];
#pragma unroll
    for (int tile = 0; tile < Shape::kTiles; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        weights[tile][half] = ptx::transpose_8x8(
            ptx::pack<T>(scores[tile][2 * half] * shares[half], scores[tile][2 * half + 1] * shares[half]));
      }
    }
    add_values<Shape, kInline>(weights, tile_values + (kInline ? call.shift_v : 0), part, state);
  }
}

// Keeps a row of a segment that is a part, or finishes it.
template <class Shape>
__device__ QUIRE_INLINE void end_row(const SplitParams& params, const Segment& segment, std::int32_t r,
                                     RowState<Shape::kDv / 32> (&rows)[Shape::kStreams]) {
  constexpr int kN = Shape::kDv / 32;
  if (segment.slot < 0) {
    const std::int32_t token = segment.rows.lengths.query_start + segment.rows.first_token + r / params.shape.group;
    finish_row(params, token, segment.kv_head * params.shape.group + r % params.shape.group, rows);
    return;
  }
#pragma unroll
  for (int stream = 0; stream < Shape::kStreams; ++stream) {
    const std::int64_t to =
        static_cast<std::int64_t>(segment.slot) * params.slot_rows + stream * Shape::kStreamRows + r;
    if (threadIdx.x % 32 == 0) params.partial_states[to] = make_float2(rows[stream].largest, rows[stream].sum);
#pragma unroll
    for (int i = 0; i < kN; ++i) params.partial_rows[to * Shape::kDv + row_dim<kN>(i)] = rows[stream].values[i];
  }
}

// Writes this warp's part of rows 4 * pass .. 4 * pass + 3 of each stream.
template <class Shape>
__device__ QUIRE_INLINE void offer_rows(const DecodeState<Shape>& state, int pass, bool scaled, int turn,
                                        float2* states, float* sums) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  if (lane % 4 / 2 != pass % 2) return;
#pragma unroll
  for (int tile = 0; tile < Shape::kTiles; ++tile) {
    if (tile % Shape::kRowTiles != pass / 2) continue;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = tile / Shape::kRowTiles * 4 + lane % 2 * 2 + i;
      if (lane < 4) states[r] = make_float2(state.largest[tile][i], state.sum[tile][i]);
#pragma unroll
      for (int j = 0; j < Shape::kDv / 16; ++j) {
        const float unit = scaled ? state.unit[j / (Shape::kDvPart / 16)] : 1.0f;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          sums[r * Shape::kMergePitch + value_dim<Shape>(j, 2 * half, turn)] =
              state.values[tile][j][2 * half + i] * unit;
        }
      }
    }
  }
}

// Folds the four warps' states, four rows at a time and a warp a row, and keeps or finishes the segment's rows.
template <class Shape>
__device__ QUIRE_INLINE void merge_warps(const SplitParams& params, const Segment& segment, DecodeState<Shape>& state,
                                         bool scaled, std::byte* shared) {
  constexpr int kN = Shape::kDv / 32;
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int turn = params.inline_unit != 0 ? word_turn<Shape>() : 0;
  auto* states = reinterpret_cast<float2*>(shared);  // [kWarps, kMergeRows]
  auto* sums = reinterpret_cast<float*>(shared + Shape::kWarps * Shape::kMergeRows * sizeof(float2));
#pragma unroll
  for (int tile = 0; tile < Shape::kTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int offset = 4; offset < 32; offset *= 2) {
        state.sum[tile][i] += __shfl_xor_sync(kFullWarp, state.sum[tile][i], offset);
      }
    }
  }
  const std::int32_t num_rows = segment.rows.num_tokens * params.shape.group;
#pragma unroll 1
  for (int pass = 0; 4 * pass < num_rows; ++pass) {
    offer_rows(state, pass, scaled, turn, states + warp * Shape::kMergeRows,
               sums + warp * Shape::kMergeRows * Shape::kMergePitch);
    __syncthreads();
    if (4 * pass + warp < num_rows) {
      RowState<kN> rows[Shape::kStreams];
#pragma unroll
      for (int stream = 0; stream < Shape::kStreams; ++stream) {
        RowState<kN>& row = rows[stream];
        const int at = stream * 4 + warp;
#pragma unroll
        for (int w = 0; w < Shape::kWarps; ++w) row.largest = fmaxf(row.largest, states[w * Shape::kMergeRows + at].x);
#pragma unroll
        for (float& value : row.values) value = 0.0f;
        const float base = row.largest == -INFINITY ? 0.0f : row.largest;
#pragma unroll
        for (int w = 0; w < Shape::kWarps; ++w) {
          const float2 part = states[w * Shape::kMergeRows + at];
          const float factor = ptx::exp2_fast(part.x - base);
          row.sum += part.y * factor;
          const float* values = sums + (w * Shape::kMergeRows + at) * Shape::kMergePitch;
#pragma unroll
          for (int i = 0; i < kN; ++i) row.values[i] += factor * values[row_dim<kN>(i)];
        }
      }
      end_row<Shape>(params, segment, 4 * pass + warp, rows);
    }
    __syncthreads();
  }
}

template <class Shape>
__device__ QUIRE_INLINE DecodeCall decode_call(const SplitParams& params, const Segment& segment) {
  DecodeCall call;
  call.terms.terms = split_terms(params.args, segment.rows.seq);
  call.terms.has_logit_terms = has_logit_terms(call.terms.terms);
  call.one_row = segment.rows.num_tokens == 1 && !call.terms.has_logit_terms && !call.terms.terms.tree.active();
  if (call.one_row) {
    call.terms.keys = call.terms.interior = {segment.rows.keys.begin, segment.keys.end};
  } else {
    call.terms = tile_terms(params.args, segment);
  }
  call.scaled = Shape::kBytes == 1 && params.args.kv.key[0].scales != nullptr;
  call.group = params.shape.group;
#pragma unroll
  for (int stream = 0; stream < Shape::kStreams; ++stream) {
    call.factor[stream] = params.args.variant.scale * params.args.query_scale *
                          params.args.kv.key[stream].tensor_scale * (call.terms.has_logit_terms ? 1.0f : kLog2E);
  }
  return call;
}

// All of a block's segments, with kAhead tiles of each warp under way all the time.
template <class Shape>
__device__ QUIRE_INLINE void run_segments(const DecodeWork& work, LoadCursor<Shape>& cursor, std::byte* merge_shared) {
  const SplitParams& params = work.params;
  DecodeState<Shape> state;
  int stage = 0;
  int ahead = 0;  // tiles under way, or empty places for them
  for (std::int32_t unit = work.units.begin; unit < work.units.end;) {
    Segment segment;
    DecodeCall call;
    bool is_new = true;
    std::int32_t first_key = 0;
#pragma unroll 1
    do {
      // The loads come first: the rest of a segment's beginning takes as long as they do.
#pragma unroll 1
      for (; ahead < Shape::kAhead; ++ahead) cursor.issue(work);
      if (is_new) {
        is_new = false;
        segment = work.segment(unit);
        first_key = segment.keys.begin + static_cast<std::int32_t>(threadIdx.x / 32) * Shape::kKeys;
        call = decode_call<Shape>(params, segment);
        call.shift_k = cursor.loader.shift_k;
        call.shift_v = cursor.loader.shift_v;
        load_queries<Shape>(params.args, segment, params.shape.group, merge_shared, state);
        state.reset();
        if (first_key >= segment.keys.end) break;
      }
      ptx::cp_async_wait<Shape::kAhead - 1>();
      __syncwarp();
      const std::uint32_t tile = cursor.loader.stage(stage);
      if (Shape::kBytes == 1 && Shape::kStreams == 1 && params.inline_unit != 0) {
        fold_tile<Shape, Shape::kBytes == 1>(call, segment, first_key, tile, state);
      } else {
        fold_tile<Shape, false>(call, segment, first_key, tile, state);
      }
      __syncwarp();
      stage = stage + 1 == Shape::kStages ? 0 : stage + 1;
      --ahead;
      first_key += Shape::kWarps * Shape::kKeys;
    } while (first_key < segment.keys.end);
    if constexpr (Shape::kSharedQuery) __syncthreads();
    merge_warps<Shape>(params, segment, state, call.scaled, merge_shared);
    unit += segment.num_units;
  }
  ptx::cp_async_wait<0>();
}

// Brings lengths, block table and queries near, a line a thread of the grid, while blocks wait for the lengths.
__device__ QUIRE_INLINE void prefetch_metadata(const AttentionArgs& args) {
  if (threadIdx.x * 32 <= static_cast<unsigned>(args.num_seqs)) {
    ptx::prefetch(args.seq_lens + min(static_cast<std::int32_t>(threadIdx.x) * 32, args.num_seqs - 1));
    ptx::prefetch(args.query_start_loc + min(static_cast<std::int32_t>(threadIdx.x) * 32, args.num_seqs));
  }
  const std::int64_t at = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * 128;
  if (args.kv.block_table != nullptr && at < args.num_seqs * args.kv.block_table_stride * 4) {
    ptx::prefetch(reinterpret_cast<const std::byte*>(args.kv.block_table) + at);
  }
  const std::int64_t elements = (args.num_tokens - 1) * args.query_token_stride +
                                (args.num_q_heads - 1) * args.query_head_stride + args.kv.head_size;
  if (at < elements * dtype_bytes(args.query_dtype)) {
    ptx::prefetch(static_cast<const std::byte*>(args.query) + at);
  }
}

template <class Shape>
__global__ void __launch_bounds__(Shape::kWarps * 32, Shape::kBlocks)
    decode_kernel(const __grid_constant__ SplitParams params) {
  extern __shared__ __align__(128) std::byte decode_shared[];
  static_assert(sizeof(TileRecord) * kMaxRecords == kDecodeRecordBytes);
  ptx::launch_dependents();
  const AttentionArgs& args = params.args;
  prefetch_metadata(args);
  auto* records = reinterpret_cast<TileRecord*>(decode_shared + Shape::kMainBytes);
  auto* scratch = reinterpret_cast<std::int32_t*>(records + kMaxRecords);
  std::int32_t* table = scratch + 32;
  const std::int32_t heads = args.kv.num_kv_heads;
  const std::uint32_t ring = ptx::shared_address(decode_shared) +
                             threadIdx.x / 32 * static_cast<std::uint32_t>(Shape::kStages * Shape::kStageBytes);
  LoadCursor<Shape> cursor{{&args.kv,
                            params.record,
                            ring,
                            0,
                            static_cast<std::int32_t>(blockIdx.x) % heads,
                            {},
                            Shape::kBytes == 1 && params.narrow_rows,
                            params.inline_unit,
                            params.block_shift,
                            static_cast<std::int32_t>(threadIdx.x % 32)},
                           0};
  cursor.loader.find_units();
  build_table<Shape::kWarps * 32>(args, params.shape, table, scratch, records, params.record);
  const std::int32_t total = table[params.shape.num_entries];
  const bool overflows = params.shape.is_fixed() && total > params.shape.num_slots / heads;
  if (blockIdx.x == 0 && params.shape.num_entries > kMaxRecords) {
    for (std::int32_t i = static_cast<std::int32_t>(threadIdx.x); i <= params.shape.num_entries;
         i += Shape::kWarps * 32) {
      params.table[i] = overflows ? 0 : table[i];
    }
  }
  if (overflows) {
    if (threadIdx.x == 0) report(params.record, Fault::kWorkspace, 0, total, params.shape.num_slots / heads);
    return;
  }
  const std::int32_t group = static_cast<std::int32_t>(blockIdx.x) / heads;
  const DecodeWork work{params,
                        table,
                        records,
                        {first_unit_of_group(group, total, params.shape.num_groups),
                         first_unit_of_group(group + 1, total, params.shape.num_groups)}};
  cursor.unit = work.units.begin;
  cursor.choose_policy((work.units.end - work.units.begin) * (params.shape.unit_keys / LoadCursor<Shape>::kStep));
  run_segments<Shape>(work, cursor, decode_shared + Shape::kRingBytes);
}

}  // namespace quire::cuda
