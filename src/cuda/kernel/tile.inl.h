// The tile kernel: many query rows a request, prompts and large trees.
//
// Cost: 4 * head_size flops a row and visible key in m16n8k16 products; K and V of a row tile are read once for the 128
// (64) rows of all q_heads of a kv head, mostly from L2. Bound by the tensor cores and the shared memory that feeds
// them: each loaded fragment of K and V serves two tiles of 16 rows. Two blocks share a multiprocessor, so that one's
// softmax runs beside the other's products. Differential attention multiplies the weights of both streams with one load
// of their shared values.
#pragma once

#include "core/macros.h"
#include "cuda/block/finish.h"
#include "cuda/block/tile_loader.h"
#include "cuda/block/tile_terms.h"
#include "cuda/kernel/tile.h"
#include "cuda/ptx/convert.h"
#include "cuda/ptx/dependent.h"

namespace quire::cuda {

// Running sums of a warp's rows.
template <class Shape>
struct TileState {
  float values[Shape::kRowTiles][Shape::kDv / 8][4];
  float largest[Shape::kRowTiles][2];
  float sum[Shape::kRowTiles][2];
  TileRow rows[Shape::kRowTiles][2];
};

// First row of a warp's row tile among the rows in shared memory.
template <class Shape>
__device__ QUIRE_INLINE int first_row_of(int tile) {
  const int warp = static_cast<int>(threadIdx.x / 32);
  return Shape::kStreams == 2 ? tile * Shape::kStreamRows + warp * 16 : (warp * Shape::kRowTiles + tile) * 16;
}

template <class Shape>
__device__ QUIRE_INLINE void reset(const Segment& segment, std::int32_t group, const TileTerms& how,
                                   TileState<Shape>& state) {
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int tile = 0; tile < Shape::kRowTiles; ++tile) {
#pragma unroll
    for (int j = 0; j < Shape::kDv / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) state.values[tile][j][i] = 0.0f;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      state.largest[tile][half] = -INFINITY;
      state.sum[tile][half] = 0.0f;
      const int r = (first_row_of<Shape>(tile) + lane / 4 + 8 * half) % Shape::kStreamRows;
      state.rows[tile][half] = tile_row(segment, group, Shape::kStreams, Shape::kStreams == 2 ? tile : 0, r);
      state.rows[tile][half].seen = keys_of_row(how, state.rows[tile][half].row);
    }
  }
}

// scores = Q * K^T for kStep keys from row `key` of the tile.
template <class Shape>
__device__ QUIRE_INLINE void multiply_keys(const TileShared<Shape>& shared, std::uint32_t keys, int key,
                                           float (&scores)[Shape::kRowTiles][Shape::kStep / 8][4]) {
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int tile = 0; tile < Shape::kRowTiles; ++tile) {
#pragma unroll
    for (int n = 0; n < Shape::kStep / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[tile][n][i] = 0.0f;
    }
  }
  const std::uint32_t queries = ptx::shared_address(shared.queries());
#pragma unroll
  for (int step = 0; step < Shape::kD / 16; ++step) {
    std::uint32_t q[Shape::kRowTiles][4];
#pragma unroll
    for (int tile = 0; tile < Shape::kRowTiles; ++tile) {
      ptx::ldmatrix_x4(q[tile],
                       queries + static_cast<std::uint32_t>((first_row_of<Shape>(tile) + lane % 16) * Shape::kPitchQ +
                                                            step * 32 + lane / 16 * 16));
    }
#pragma unroll
    for (int stream = 0; stream < Shape::kStreams; ++stream) {
#pragma unroll
      for (int n = 0; n < Shape::kStep / 16; ++n) {
        std::uint32_t k[4];
        const int row = stream * Shape::kKeys + key + n * 16 + lane / 16 * 8 + lane % 8;
        ptx::ldmatrix_x4(k, keys + static_cast<std::uint32_t>(row * Shape::kPitchK + step * 32 + lane / 8 % 2 * 16));
#pragma unroll
        for (int tile = 0; tile < Shape::kRowTiles; ++tile) {
          if (Shape::kStreams == 2 && tile != stream) continue;
          ptx::mma_16816<typename Shape::T>(scores[tile][2 * n], q[tile], k[0], k[1]);
          ptx::mma_16816<typename Shape::T>(scores[tile][2 * n + 1], q[tile], k[2], k[3]);
        }
      }
    }
  }
}

// Scores to weights, for one row tile; the state moves to the new maximum.
template <class Shape>
__device__ QUIRE_INLINE void soften(TileState<Shape>& state, int tile, float (&scores)[Shape::kStep / 8][4]) {
  float fade[2];
  bool moved = false;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float top = -INFINITY;
#pragma unroll
    for (int n = 0; n < Shape::kStep / 8; ++n) top = fmaxf(top, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
    top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 1));
    top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 2));
    const float raised = fmaxf(state.largest[tile][half], top);
    const float base = raised == -INFINITY ? 0.0f : raised;
    fade[half] = ptx::exp2_fast(state.largest[tile][half] - base);
    moved |= raised != state.largest[tile][half];
    state.largest[tile][half] = raised;
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < Shape::kStep / 8; ++n) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        scores[n][i] = ptx::exp2_fast(scores[n][i] - base);
        sum += scores[n][i];
      }
    }
    state.sum[tile][half] = state.sum[tile][half] * fade[half] + sum;
  }
  if (__any_sync(kFullWarp, moved)) {
#pragma unroll
    for (int j = 0; j < Shape::kDv / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) state.values[tile][j][i] *= fade[i / 2];
    }
  }
}

// values += weights * V. `scales` are the row scales of the step's first value row, null without.
template <class Shape>
__device__ QUIRE_INLINE void multiply_values(std::uint32_t tile_values, int key, const float* scales,
                                             const float (&scores)[Shape::kRowTiles][Shape::kStep / 8][4],
                                             TileState<Shape>& state) {
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int step = 0; step < Shape::kStep / 16; ++step) {
#pragma unroll
    for (int part = 0; part < Shape::kStreams; ++part) {
      float share[4] = {1.0f, 1.0f, 1.0f, 1.0f};
      if (Shape::kBytes == 1 && scales != nullptr) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          share[i] = scales[(2 * part + 1) * Shape::kKeys + key + step * 16 + i / 2 * 8 + lane % 4 * 2 + i % 2];
        }
      }
      std::uint32_t weights[Shape::kRowTiles][4];
#pragma unroll
      for (int tile = 0; tile < Shape::kRowTiles; ++tile) {
#pragma unroll
        for (int word = 0; word < 4; ++word) {
          const float* pair = &scores[tile][2 * step + word / 2][word % 2 * 2];
          weights[tile][word] =
              ptx::pack<typename Shape::T>(pair[0] * share[word / 2 * 2], pair[1] * share[word / 2 * 2 + 1]);
        }
      }
#pragma unroll
      for (int j = 0; j < Shape::kDvPart / 8; j += 2) {
        std::uint32_t v[4];
        const int row = key + step * 16 + lane / 8 % 2 * 8 + lane % 8;
        const int column = part * Shape::kDvPart / 8 + j;
        ptx::ldmatrix_x4_transposed(
            v, tile_values + static_cast<std::uint32_t>(row * Shape::kPitchV + (column + lane / 16) * 16));
#pragma unroll
        for (int tile = 0; tile < Shape::kRowTiles; ++tile) {
          ptx::mma_16816<typename Shape::T>(state.values[tile][column], weights[tile], v[0], v[1]);
          ptx::mma_16816<typename Shape::T>(state.values[tile][column + 1], weights[tile], v[2], v[3]);
        }
      }
    }
  }
}

// What all steps of a segment share.
struct TileCall {
  TileTerms terms;
  float factor[2];  // of the products of a stream
  float boost;      // of weights with row scales, undone at the end
  bool scaled;
};

// One stage of keys.
template <class Shape>
__device__ QUIRE_INLINE void fold_stage(const TileCall& call, const TileShared<Shape>& shared, int stage,
                                        std::int32_t first_key, TileState<Shape>& state) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const std::uint32_t keys = ptx::shared_address(shared.tile(stage));
  const std::uint32_t tile_values = keys + static_cast<std::uint32_t>(Shape::kStreams * Shape::kKeys * Shape::kPitchK);
  const float* scales = Shape::kBytes == 1 && call.scaled ? shared.scales(stage) : nullptr;
#pragma unroll 1
  for (int key = 0; key < Shape::kKeys; key += Shape::kStep) {
    if (first_key + key >= call.terms.keys.end) break;
    float scores[Shape::kRowTiles][Shape::kStep / 8][4];
    multiply_keys<Shape>(shared, keys, key, scores);
#pragma unroll
    for (int tile = 0; tile < Shape::kRowTiles; ++tile) {
      const int stream = Shape::kStreams == 2 ? tile : 0;
#pragma unroll
      for (int n = 0; n < Shape::kStep / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float factor = call.factor[stream];
          if (Shape::kBytes == 1 && scales != nullptr) {
            factor *= scales[2 * stream * Shape::kKeys + key + 8 * n + lane % 4 * 2 + i % 2];
          }
          scores[tile][n][i] *= factor;
        }
      }
      apply_terms(call.terms, first_key + key, state.rows[tile], scores[tile]);
      soften<Shape>(state, tile, scores[tile]);
      if (Shape::kBytes == 1 && scales != nullptr) {
#pragma unroll
        for (int n = 0; n < Shape::kStep / 8; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) scores[tile][n][i] *= call.boost;
        }
      }
    }
    multiply_values<Shape>(tile_values, key, scales, scores, state);
  }
}

// Rows through shared memory to the output or to the segment's slot; a warp a row.
template <class Shape>
__device__ QUIRE_INLINE void store_segment(const SplitParams& params, const Segment& segment, float unboost,
                                           TileState<Shape>& state, const TileShared<Shape>& shared) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warp = static_cast<int>(threadIdx.x / 32);
  float* results = shared.results();
  __shared__ float2 states[Shape::kRows];
  __syncthreads();
#pragma unroll
  for (int tile = 0; tile < Shape::kRowTiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = state.sum[tile][half];
      sum += __shfl_xor_sync(kFullWarp, sum, 1);
      sum += __shfl_xor_sync(kFullWarp, sum, 2);
      const int r = first_row_of<Shape>(tile) + lane / 4 + 8 * half;
      if (lane % 4 == 0) states[r] = make_float2(state.largest[tile][half], sum);
#pragma unroll
      for (int j = 0; j < Shape::kDv / 8; ++j) {
        *reinterpret_cast<float2*>(results + r * Shape::kResultPitch + 8 * j + lane % 4 * 2) =
            make_float2(state.values[tile][j][2 * half] * unboost, state.values[tile][j][2 * half + 1] * unboost);
      }
    }
  }
  __syncthreads();
  const std::int32_t num_rows = segment.rows.num_tokens * params.shape.group;
  for (std::int32_t r = warp; r < num_rows; r += Shape::kWarps) {
    RowState<Shape::kDv / 32> rows[Shape::kStreams];
#pragma unroll
    for (int stream = 0; stream < Shape::kStreams; ++stream) {
      const int at = stream * Shape::kStreamRows + r;
      rows[stream].largest = states[at].x;
      rows[stream].sum = states[at].y;
#pragma unroll
      for (int i = 0; i < Shape::kDv / 32; ++i)
        rows[stream].values[i] = results[at * Shape::kResultPitch + row_dim<Shape::kDv / 32>(i)];
      if (segment.slot < 0) continue;
      const std::int64_t to = static_cast<std::int64_t>(segment.slot) * params.slot_rows + at;
      if (lane == 0) params.partial_states[to] = states[at];
#pragma unroll
      for (int i = 0; i < Shape::kDv / 32; ++i)
        params.partial_rows[to * Shape::kDv + row_dim<Shape::kDv / 32>(i)] = rows[stream].values[i];
    }
    if (segment.slot >= 0) continue;
    const std::int32_t token = segment.rows.lengths.query_start + segment.rows.first_token + r / params.shape.group;
    finish_row(params, token, segment.kv_head * params.shape.group + r % params.shape.group, rows);
  }
  __syncthreads();
}

// Whether whole rows of T go to the output as they are, without the way through shared memory.
template <class Shape>
__device__ QUIRE_INLINE bool stores_fragments(const SplitParams& params, const Segment& segment) {
  const DType dtype = __is_same(typename Shape::T, __nv_bfloat16) ? DType::kBFloat16 : DType::kFloat16;
  const RowTarget& target = params.target;
  return Shape::kStreams == 1 && segment.slot < 0 && target.dtype == dtype && target.inverse_scale == 0.0f &&
         target.token_stride % 2 == 0 && target.head_stride % 2 == 0 &&
         reinterpret_cast<std::uintptr_t>(target.data) % 4 == 0;
}

template <class Shape>
__device__ QUIRE_INLINE void store_fragments(const SplitParams& params, const Segment& segment, float unboost,
                                             TileState<Shape>& state) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const AttentionArgs& args = params.args;
#pragma unroll
  for (int tile = 0; tile < Shape::kRowTiles; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const TileRow& row = state.rows[tile][half];
      float sum = state.sum[tile][half];
      sum += __shfl_xor_sync(kFullWarp, sum, 1);
      sum += __shfl_xor_sync(kFullWarp, sum, 2);
      float largest = state.largest[tile][half];
      float fade = 1.0f;
      if (args.variant.sinks != nullptr) join_sink(args.variant.sinks[row.q_head], largest, sum, fade);
      const float norm = sum == 0.0f ? 0.0f : fade / sum * args.kv.value[0].tensor_scale * unboost;
      if (!row.valid) continue;
      const std::int64_t token = segment.rows.lengths.query_start + static_cast<std::int64_t>(row.row);
      if (args.lse != nullptr && lane % 4 == 0) {
        args.lse[row.q_head * args.lse_head_stride + token] = sum == 0.0f ? -INFINITY : (largest + log2f(sum)) * kLn2;
      }
      auto* to = static_cast<std::uint16_t*>(params.target.data) + token * params.target.token_stride +
                 row.q_head * params.target.head_stride + lane % 4 * 2;
#pragma unroll
      for (int j = 0; j < Shape::kDv / 8; ++j) {
        *reinterpret_cast<std::uint32_t*>(to + 8 * j) = ptx::pack<typename Shape::T>(
            state.values[tile][j][2 * half] * norm, state.values[tile][j][2 * half + 1] * norm);
      }
    }
  }
}

// Widens a stage of 8-bit elements to the tile that is multiplied.
template <class Shape>
__device__ QUIRE_INLINE void widen_stage(const KVSource& kv, const TileShared<Shape>& shared, int stage) {
  constexpr int kElementsK = Shape::kKeys * Shape::kD * Shape::kStreams;
  constexpr int kElements = kElementsK + Shape::kKeys * Shape::kDv;
  const auto* from = reinterpret_cast<const std::uint8_t*>(shared.stage(stage));
  for (int i = static_cast<int>(threadIdx.x) * 4; i < kElements; i += Shape::kWarps * 32 * 4) {
    const std::uint32_t word = *reinterpret_cast<const std::uint32_t*>(from + i);
    const int row = i < kElementsK ? i / Shape::kD : (i - kElementsK) / Shape::kDv;
    const int column = i < kElementsK ? i % Shape::kD : (i - kElementsK) % Shape::kDv;
    std::byte* to = shared.tile(stage) +
                    (i < kElementsK ? row * Shape::kPitchK
                                    : Shape::kStreams * Shape::kKeys * Shape::kPitchK + row * Shape::kPitchV) +
                    column * 2;
    *reinterpret_cast<uint2*>(to) = ptx::widen_word<typename Shape::T>(kv.dtype, word);
  }
}

template <class Shape>
__device__ QUIRE_INLINE void run_segment(const SplitParams& params, const Segment& segment,
                                         const TileShared<Shape>& shared, TileState<Shape>& state) {
  const AttentionArgs& args = params.args;
  const TileLoader<Shape> loader{&args.kv,          params.record,   shared,
                                 segment.rows.seq,  segment.kv_head, {segment.rows.keys.begin, segment.keys.end},
                                 params.narrow_rows};
  TileCall call;
  call.terms = tile_terms(args, segment);
  call.scaled = Shape::kBytes == 1 && args.kv.key[0].scales != nullptr;
  call.boost = Shape::kBytes == 1 && call.scaled && !__is_same(typename Shape::T, __nv_bfloat16) ? 256.0f : 1.0f;
#pragma unroll
  for (int stream = 0; stream < 2; ++stream) {
    call.factor[stream] = args.variant.scale * args.query_scale * args.kv.key[stream].tensor_scale *
                          (call.terms.has_logit_terms ? 1.0f : kLog2E);
  }
  const std::int32_t begin = segment.keys.begin;
  const std::int32_t end = segment.keys.end;
  const std::int32_t first_page = loader.page_of(begin);
  std::int32_t page = loader.page_of(begin + Shape::kKeys);
  loader.find_rows(0, begin, first_page);
  load_query_tile<Shape>(args, segment, params.shape.group, shared.queries());
  reset<Shape>(segment, params.shape.group, call.terms, state);
  __syncthreads();
  loader.load(0, 0);
  ptx::cp_async_commit();
  loader.find_rows(1, begin + Shape::kKeys, page);
  page = loader.page_of(begin + 2 * Shape::kKeys);
  int stage = 0;
#pragma unroll 1
  for (std::int32_t first_key = begin; first_key < end; first_key += Shape::kKeys) {
    ptx::cp_async_wait<0>();
    __syncthreads();
    if (first_key + Shape::kKeys < end) loader.load(stage ^ 1, stage ^ 1);
    ptx::cp_async_commit();
    if constexpr (Shape::kBytes == 1) {
      widen_stage<Shape>(args.kv, shared, stage);
      __syncthreads();
    }
    fold_stage<Shape>(call, shared, stage, first_key, state);
    if constexpr (Shape::kBytes == 1) __syncthreads();
    loader.find_rows(stage, first_key + 2 * Shape::kKeys, page);
    page = loader.page_of(first_key + 3 * Shape::kKeys);
    stage ^= 1;
  }
  ptx::cp_async_wait<0>();
  if (stores_fragments<Shape>(params, segment)) {
    store_fragments<Shape>(params, segment, 1.0f / call.boost, state);
    __syncthreads();
  } else {
    store_segment<Shape>(params, segment, 1.0f / call.boost, state, shared);
  }
}

template <class Shape>
__global__ void __launch_bounds__(Shape::kWarps * 32, Shape::kBlocks)
    tile_kernel(const __grid_constant__ SplitParams params) {
  extern __shared__ __align__(128) std::byte tile_shared[];
  ptx::launch_dependents();
  const ScheduleShape& shape = params.shape;
  const std::int32_t total = params.table[shape.num_entries];
  const std::int32_t group = static_cast<std::int32_t>(blockIdx.x) / params.args.kv.num_kv_heads;
  const KeyRange units{first_unit_of_group(group, total, shape.num_groups),
                       first_unit_of_group(group + 1, total, shape.num_groups)};
  const TileShared<Shape> shared{tile_shared};
  TileState<Shape> state;
  for (std::int32_t unit = units.begin; unit < units.end;) {
    const Segment segment = segment_at(params.args, shape, params.table, nullptr, unit, units,
                                       static_cast<std::int32_t>(blockIdx.x), params.record);
    run_segment<Shape>(params, segment, shared, state);
    unit += segment.num_units;
  }
}

}  // namespace quire::cuda
