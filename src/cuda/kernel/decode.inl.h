// The decode kernel: few query rows a request against a long paged cache.
//
// Cost: every visible K and V element is read once, by 16-byte asynchronous copies through the block table, and shared
// by all q_heads of its kv head and all tokens of the request (up to 32 rows); 4 * head_size flops a row and key run as
// m16n8k16 products, of which decode uses a fraction. Bound by memory: a multiprocessor keeps 96 KB and more under way.
// Each of four warps takes every fourth 16-key tile of a segment with a ring of its own, so the main loop has no
// barrier; 8-bit elements become float16 in registers. The warps' results are folded once a segment.
#pragma once

#include "cuda/block/decode_tile.h"
#include "cuda/block/finish.h"
#include "cuda/block/tile_terms.h"
#include "cuda/kernel/decode.h"
#include "cuda/ptx/dependent.h"

namespace quire::cuda {

// Scores to logits in units of log 2, hidden keys to -inf. Few tiles of a long cache are masked, and registers for the
// rows' intervals cost more than a call there.
template <class Shape>
__device__ QUIRE_INLINE void fold_terms(const TileTerms& how, std::int32_t first_key, const DecodeRow (&rows)[2],
                                        float (&scores)[Shape::kKeys / 8][4]) {
  const bool masked = first_key < how.interior.begin || first_key + Shape::kKeys > how.interior.end;
  if (!masked && !how.has_logit_terms) return;
  const std::int32_t first = first_key + static_cast<std::int32_t>(threadIdx.x % 4) * 2;
#pragma unroll
  for (int n = 0; n < Shape::kKeys / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      scores[n][i] = logit_of(how, first + 8 * n + i % 2, rows[i / 2].row, rows[i / 2].q_head, scores[n][i]);
    }
  }
}

// One online softmax step of a row tile: scores become weights, the state moves to the new maximum.
template <class Shape>
__device__ QUIRE_INLINE void softmax_step(DecodeState<Shape>& state, int tile, float (&scores)[2][4]) {
  float raised[2];
  float fade[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float top =
        fmaxf(fmaxf(scores[0][2 * half], scores[0][2 * half + 1]), fmaxf(scores[1][2 * half], scores[1][2 * half + 1]));
    top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 1));
    top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 2));
    raised[half] = fmaxf(state.largest[tile][half], top);
    const float base = raised[half] == -INFINITY ? 0.0f : raised[half];
    fade[half] = ptx::exp2_fast(state.largest[tile][half] - base);
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        scores[n][i] = ptx::exp2_fast(scores[n][i] - base);
        sum += scores[n][i];
      }
    }
    state.sum[tile][half] = state.sum[tile][half] * fade[half] + sum;
  }
  const bool moved = raised[0] != state.largest[tile][0] || raised[1] != state.largest[tile][1];
  state.largest[tile][0] = raised[0];
  state.largest[tile][1] = raised[1];
  if (__any_sync(kFullWarp, moved)) {
#pragma unroll
    for (int j = 0; j < Shape::kDv / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) state.values[tile][j][i] *= fade[i / 2];
    }
  }
}

// The row scales of a tile's values: raises state.unit to the largest one (and rescales what is there), and returns the
// scales of this thread's four keys relative to it.
template <class Shape>
__device__ QUIRE_INLINE void raise_unit(DecodeState<Shape>& state, int stream, std::uint32_t scales,
                                        float (&shares)[4]) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  float top = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    std::uint32_t word[1];
    ptx::load_shared(word,
                     scales + static_cast<std::uint32_t>((stream * 32 + 16 + i / 2 * 8 + lane % 4 * 2 + i % 2) * 4));
    shares[i] = __uint_as_float(word[0]);
    top = fmaxf(top, shares[i]);
  }
  top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 1));
  top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 2));
  if (top > state.unit[stream]) {
    const float fade = state.unit[stream] / top;
    state.unit[stream] = top;
#pragma unroll
    for (int tile = 0; tile < Shape::kRowTiles; ++tile) {
#pragma unroll
      for (int j = 0; j < Shape::kDvPart / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) state.values[tile][stream * Shape::kDvPart / 8 + j][i] *= fade;
      }
    }
  }
  const float inverse = state.unit[stream] > 0.0f ? 1.0f / state.unit[stream] : 0.0f;
#pragma unroll
  for (float& share : shares) share *= inverse;
}

// The product's factor, with the row scales of the keys where the cache has them.
template <class Shape>
__device__ QUIRE_INLINE void scale_scores(const DecodeState<Shape>& state, int tile, bool scaled, std::uint32_t scales,
                                          float (&scores)[2][4]) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int stream = Shape::kStreams == 2 ? tile : 0;
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float factor = state.factor[tile][i / 2];
      if (Shape::kBytes == 1 && scaled) {
        std::uint32_t word[1];
        ptx::load_shared(word, scales + static_cast<std::uint32_t>((stream * 32 + 8 * n + lane % 4 * 2 + i % 2) * 4));
        factor *= __uint_as_float(word[0]);
      }
      scores[n][i] *= factor;
    }
  }
}

// One tile of 16 keys for all row tiles.
template <class Shape>
__device__ QUIRE_INLINE void fold_tile(const TileTerms& how, bool scaled, std::int32_t first_key, std::uint32_t stage,
                                       DecodeState<Shape>& state) {
  using T = DecodeNumber<Shape>;
  const std::uint32_t scales = stage + static_cast<std::uint32_t>(Shape::kStageBytes - Shape::kScaleBytes);
  const std::uint32_t value_tile = stage + static_cast<std::uint32_t>(Shape::kStreams * Shape::kKeys * Shape::kPitchK);
  float shares[Shape::kStreams][4];
  if constexpr (Shape::kBytes == 1) {
    if (scaled) {
#pragma unroll
      for (int stream = 0; stream < Shape::kStreams; ++stream) raise_unit(state, stream, scales, shares[stream]);
    }
  }
#pragma unroll
  for (int tile = 0; tile < Shape::kRowTiles; ++tile) {
    const int stream = Shape::kStreams == 2 ? tile : 0;
    float scores[2][4];
    score_tile<Shape>(state.query[tile], stage + static_cast<std::uint32_t>(stream * Shape::kKeys * Shape::kPitchK),
                      scores);
    scale_scores(state, tile, scaled, scales, scores);
    fold_terms<Shape>(how, first_key, state.rows[tile], scores);
    softmax_step(state, tile, scores);
#pragma unroll
    for (int part = 0; part < Shape::kStreams; ++part) {
      float share[4] = {1.0f, 1.0f, 1.0f, 1.0f};
      if constexpr (Shape::kBytes == 1) {
        if (scaled) {
#pragma unroll
          for (int i = 0; i < 4; ++i) share[i] = shares[part][i];
        }
      }
      const std::uint32_t weights[4] = {ptx::pack<T>(scores[0][0] * share[0], scores[0][1] * share[1]),
                                        ptx::pack<T>(scores[0][2] * share[0], scores[0][3] * share[1]),
                                        ptx::pack<T>(scores[1][0] * share[2], scores[1][1] * share[3]),
                                        ptx::pack<T>(scores[1][2] * share[2], scores[1][3] * share[3])};
      add_value_tile<Shape>(weights, value_tile, part, state.values[tile]);
    }
  }
}

// Folds the four warps' states and finishes or keeps the segment's rows; a warp a row.
template <class Shape>
__device__ QUIRE_INLINE void merge_warps(const SplitParams& params, const Segment& segment, DecodeState<Shape>& state,
                                         std::byte* shared) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warp = static_cast<int>(threadIdx.x / 32);
  auto* states = reinterpret_cast<float2*>(shared);  // [kWarps, kRows]
  auto* sums = reinterpret_cast<float*>(shared + Shape::kWarps * Shape::kRows * sizeof(float2));
  __syncthreads();
#pragma unroll
  for (int tile = 0; tile < Shape::kRowTiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = state.sum[tile][half];
      sum += __shfl_xor_sync(kFullWarp, sum, 1);
      sum += __shfl_xor_sync(kFullWarp, sum, 2);
      const int r = tile * 16 + lane / 4 + 8 * half;
      if (lane % 4 == 0) states[warp * Shape::kRows + r] = make_float2(state.largest[tile][half], sum);
#pragma unroll
      for (int j = 0; j < Shape::kDv / 8; ++j) {
        const float unit =
            Shape::kBytes == 1 && params.args.kv.key[0].scales != nullptr ? state.unit[j / (Shape::kDvPart / 8)] : 1.0f;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          sums[(warp * Shape::kRows + r) * Shape::kMergePitch + value_dim<Shape>(j, lane % 4 * 2 + i)] =
              state.values[tile][j][2 * half + i] * unit;
        }
      }
    }
  }
  __syncthreads();
  const std::int32_t num_rows = segment.rows.num_tokens * params.shape.group;
  for (std::int32_t r = warp; r < num_rows; r += Shape::kWarps) {
    RowState<Shape::kDv / 32> rows[Shape::kStreams];
#pragma unroll
    for (int stream = 0; stream < Shape::kStreams; ++stream) {
      RowState<Shape::kDv / 32>& row = rows[stream];
      const int at = stream * 16 + r;
      for (int w = 0; w < Shape::kWarps; ++w) row.largest = fmaxf(row.largest, states[w * Shape::kRows + at].x);
#pragma unroll
      for (float& value : row.values) value = 0.0f;
      const float base = row.largest == -INFINITY ? 0.0f : row.largest;
      for (int w = 0; w < Shape::kWarps; ++w) {
        const float2 part = states[w * Shape::kRows + at];
        const float factor = exp2f(part.x - base);
        row.sum += part.y * factor;
#pragma unroll
        for (int i = 0; i < Shape::kDv / 32; ++i) {
          row.values[i] += factor * sums[(w * Shape::kRows + at) * Shape::kMergePitch + lane + 32 * i];
        }
      }
      if (segment.slot >= 0) {
        const std::int64_t to = static_cast<std::int64_t>(segment.slot) * params.slot_rows + at;
        if (lane == 0) params.partial_states[to] = make_float2(row.largest, row.sum);
#pragma unroll
        for (int i = 0; i < Shape::kDv / 32; ++i) params.partial_rows[to * Shape::kDv + lane + 32 * i] = row.values[i];
      }
    }
    if (segment.slot >= 0) continue;
    const std::int32_t token = segment.rows.lengths.query_start + segment.rows.first_token + r / params.shape.group;
    finish_row(params, token, segment.kv_head * params.shape.group + r % params.shape.group, rows);
  }
  __syncthreads();
}

// The warp's share of a segment's tiles, with kStages - 1 of them under way.
template <class Shape>
__device__ QUIRE_INLINE void stream_segment(const SplitParams& params, const Segment& segment,
                                            DecodeLoader<Shape>& loader, DecodeState<Shape>& state) {
  const TileTerms how = tile_terms(params.args, segment);
  const bool scaled = Shape::kBytes == 1 && params.args.kv.key[0].scales != nullptr;
  const std::int32_t step = Shape::kWarps * Shape::kKeys;
  const std::int32_t begin = segment.keys.begin + static_cast<std::int32_t>(threadIdx.x / 32) * Shape::kKeys;
  const std::int32_t end = segment.keys.end;
  std::int32_t page = loader.page_of(begin);
  std::int32_t next = begin;
#pragma unroll
  for (int stage = 0; stage < Shape::kStages - 1; ++stage) {
    if (next < end) {
      loader.load(stage, next, page);
      page = loader.page_of(next + step);
    }
    next += step;
    ptx::cp_async_commit();
  }
  load_queries<Shape>(params.args, segment, params.shape.group, how, state);
  state.reset();
  int stage = 0;
  for (std::int32_t first_key = begin; first_key < end; first_key += step) {
    ptx::cp_async_wait<Shape::kStages - 2>();
    __syncwarp();
    fold_tile(how, scaled, first_key, loader.stage(stage), state);
    __syncwarp();
    if (next < end) {
      loader.load(stage == 0 ? Shape::kStages - 1 : stage - 1, next, page);
      page = loader.page_of(next + step);
    }
    next += step;
    ptx::cp_async_commit();
    stage = stage + 1 == Shape::kStages ? 0 : stage + 1;
  }
  ptx::cp_async_wait<0>();
}

template <class Shape>
__global__ void __launch_bounds__(Shape::kWarps * 32, Shape::kBlocks)
    decode_kernel(const __grid_constant__ SplitParams params) {
  extern __shared__ __align__(128) std::byte decode_shared[];
  ptx::launch_dependents();
  const AttentionArgs& args = params.args;
  auto* scratch = reinterpret_cast<std::int32_t*>(decode_shared + Shape::kMainBytes);
  std::int32_t* table = scratch + 32;
  build_table<Shape::kWarps * 32>(args, params.shape, table, scratch, params.record);
  const std::int32_t total = table[params.shape.num_entries];
  const std::int32_t heads = args.kv.num_kv_heads;
  const bool overflows = params.shape.is_fixed() && total > params.shape.num_slots / heads;
  if (blockIdx.x == 0) {
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
  const KeyRange units{first_unit_of_group(group, total, params.shape.num_groups),
                       first_unit_of_group(group + 1, total, params.shape.num_groups)};
  const bool narrow = Shape::kBytes == 1 && params.narrow_rows;
  DecodeState<Shape> state;
  for (std::int32_t unit = units.begin; unit < units.end;) {
    const Segment segment =
        segment_at(args, params.shape, table, unit, units, static_cast<std::int32_t>(blockIdx.x), params.record);
    DecodeLoader<Shape> loader{&args.kv,
                               params.record,
                               ptx::shared_address(decode_shared) +
                                   threadIdx.x / 32 * static_cast<std::uint32_t>(Shape::kStages * Shape::kStageBytes),
                               segment.rows.seq,
                               segment.kv_head,
                               {segment.rows.keys.begin, segment.keys.end},
                               narrow,
                               params.block_shift,
                               static_cast<std::int32_t>(threadIdx.x % 32)};
    loader.find_units();
    stream_segment<Shape>(params, segment, loader, state);
    merge_warps<Shape>(params, segment, state, decode_shared);
    unit += segment.num_units;
  }
}

}  // namespace quire::cuda
