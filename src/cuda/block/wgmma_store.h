// How the rows of the wgmma tile kernel leave it: to the output, or to a slot of partial results.
#pragma once

#include "cuda/block/finish.h"
#include "cuda/block/wgmma_rows.h"

namespace quire::cuda {

// Element i of lane l of four neighbours becomes element l of lane i.
__device__ QUIRE_INLINE void turn_quad(std::uint32_t (&words)[4]) {
#pragma unroll
  for (int offset = 1; offset < 4; offset *= 2) {
    const bool is_upper = (threadIdx.x & static_cast<unsigned>(offset)) != 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if ((i & offset) != 0) continue;
      const std::uint32_t other = __shfl_xor_sync(kFullWarp, is_upper ? words[i] : words[i + offset], offset);
      (is_upper ? words[i] : words[i + offset]) = other;
    }
  }
}

// A thread's share of a row of results: element 2 * n + i is column 8 * n + lane % 4 * 2 + i.
template <class Shape>
struct WgmmaRowShare {
  float at[Shape::kDv / 4];

  __device__ static constexpr int column(int i) { return i / 2 * 8 + i % 2; }  // of the first lane
  __device__ QUIRE_INLINE static float of(const WgmmaState<Shape>& state, int half, int i) {
    return state.values[column(i) / Shape::kBlockV][i / 2 * 8 % Shape::kBlockV / 2 + 2 * half + i % 2];
  }
};

// A row to `to`, null: nowhere. A warp's lanes hold pairs of eight rows and write sectors.
template <class Shape>
__device__ QUIRE_INLINE void store_halves(const WgmmaRowShare<Shape>& row, std::uint16_t* to) {
  const auto lane = static_cast<int>(threadIdx.x % 4);
#pragma unroll
  for (int n = 0; n < Shape::kDv / 8; n += 4) {
    std::uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = ptx::pack<typename Shape::T>(row.at[2 * (n + i)], row.at[2 * (n + i) + 1]);
    turn_quad(words);
    if (to != nullptr)
      *reinterpret_cast<uint4*>(to + 8 * (n + lane)) = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

template <class Shape>
__device__ QUIRE_INLINE void store_floats(const WgmmaRowShare<Shape>& row, float* to) {
  const auto lane = static_cast<int>(threadIdx.x % 4);
  const bool is_upper = lane % 2 != 0;
#pragma unroll
  for (int n = 0; n < Shape::kDv / 8; n += 2) {
    const float* first = &row.at[2 * n];
    const float* second = first + 2;
    const float x = __shfl_xor_sync(kFullWarp, is_upper ? first[0] : second[0], 1);
    const float y = __shfl_xor_sync(kFullWarp, is_upper ? first[1] : second[1], 1);
    const float own[2] = {is_upper ? second[0] : first[0], is_upper ? second[1] : first[1]};
    if (to == nullptr) continue;
    *reinterpret_cast<float4*>(to + 8 * (n + lane % 2) + lane / 2 * 4) =
        is_upper ? make_float4(x, y, own[0], own[1]) : make_float4(own[0], own[1], x, y);
  }
}

// Element `to` of the output on.
template <class Shape>
__device__ QUIRE_INLINE void store_output(const RowTarget& target, std::int64_t to, bool is_there,
                                          const WgmmaRowShare<Shape>& row) {
  if (target.dtype == DType::kFloat32) {
    store_floats(row, is_there ? static_cast<float*>(target.data) + to : nullptr);
  } else {
    store_halves(row, is_there ? static_cast<std::uint16_t*>(target.data) + to : nullptr);
  }
}

// The largest logit of one of a thread's rows, in units of log 2, and the sum of its weights.
struct WgmmaSum {
  float largest = -INFINITY;
  float sum = 0.0f;

  template <class Shape>
  __device__ QUIRE_INLINE WgmmaSum(const WgmmaCall& call, const WgmmaState<Shape>& state, int half) {
    sum = state.sum[half][0] + state.sum[half][1];
    sum += __shfl_xor_sync(kFullWarp, sum, 1);
    sum += __shfl_xor_sync(kFullWarp, sum, 2);
    if (state.largest[half] != -INFINITY) largest = state.largest[half] * call.factor;
  }

  // What the row's sums are to be multiplied by, but for the values' tensor scale; stores the row's log-sum-exp.
  __device__ QUIRE_INLINE float normalise(const AttentionArgs& args, std::int32_t q_head, std::int64_t token,
                                          bool is_there) {
    float fade = 1.0f;
    if (args.variant.sinks != nullptr) join_sink(args.variant.sinks[q_head], largest, sum, fade);
    if (args.lse != nullptr && is_there && threadIdx.x % 4 == 0) {
      args.lse[q_head * args.lse_head_stride + token] = sum == 0.0f ? -INFINITY : (largest + log2f(sum)) * kLn2;
    }
    return sum == 0.0f ? 0.0f : fade / sum;
  }
};

// A row of a segment that is not whole, to the segment's slot.
template <class Shape>
__device__ QUIRE_INLINE void store_partial(const SplitParams& params, const WgmmaCall& call,
                                           const WgmmaState<Shape>& state, int half) {
  const std::int32_t r = call.places[half].r;
  const bool is_there = r < call.segment.num_rows;
  const WgmmaSum known(call, state, half);
  const std::int64_t to = static_cast<std::int64_t>(call.segment.slot) * params.slot_rows +
                          stream_of<Shape>(call.group) * Shape::kStreamRows + r;
  if (is_there && threadIdx.x % 4 == 0) params.partial_states[to] = make_float2(known.largest, known.sum);
  WgmmaRowShare<Shape> row;
#pragma unroll
  for (int i = 0; i < Shape::kDv / 4; ++i) row.at[i] = row.of(state, half, i);
  store_floats(row, is_there ? params.partial_rows + to * Shape::kDv : nullptr);
}

__device__ QUIRE_INLINE bool is_whole(const WgmmaCall& call) {
  return __shfl_sync(kFullWarp, call.segment.slot, 0) < 0;
}

// A thread's part of its rows to the output, or to the segment's slot.
template <class Shape>
__device__ QUIRE_INLINE void store_rows(const SplitParams& params, const WgmmaCall& call,
                                        const WgmmaState<Shape>& state) {
  const AttentionArgs& args = params.args;
  const WgmmaSegment& segment = call.segment;
  const bool whole = is_whole(call);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (!whole) {
      store_partial(params, call, state, half);
      continue;
    }
    const WgmmaPlace& place = call.places[half];
    const bool is_there = place.r < segment.num_rows;
    const std::int64_t token = segment.query_start + segment.first_token + place.token;
    const std::int32_t q_head = segment.kv_head * params.shape.group + place.head;
    const float norm =
        WgmmaSum(call, state, half).normalise(args, q_head, token, is_there) * args.kv.value[0].tensor_scale;
    WgmmaRowShare<Shape> row;
#pragma unroll
    for (int i = 0; i < Shape::kDv / 4; ++i) row.at[i] = row.of(state, half, i) * norm;
    store_output(params.target, token * params.target.token_stride + q_head * params.target.head_stride, is_there, row);
  }
}

// Gives the other warpgroup the rows of which it makes results, and takes its own in return, a block of values at a
// time through `place`, which both have read. `row` is this stream's, then what the streams differ by.
template <class Shape>
__device__ QUIRE_INLINE void take_difference(float lambda, int group, const WgmmaRowShare<Shape>& given,
                                             std::uint32_t place, WgmmaRowShare<Shape>& row) {
  constexpr int kElements = Shape::kBlockV / 4;
  static_assert(Shape::kValueBytes >= 2 * 128 * kElements * 4);
  auto* fours = static_cast<float4*>(__cvta_shared_to_generic(place)) + threadIdx.x % 128;
  float4* mine = fours + group * kElements / 4 * 128;
  const float4* others = fours + (1 - group) * kElements / 4 * 128;
#pragma unroll
  for (int block = 0; block < Shape::kBlocksV; ++block) {
    ptx::named_barrier_sync(kBothGroups, 128 * Shape::kGroups);
#pragma unroll
    for (int i = 0; i < kElements; i += 4) {
      const float* own = &given.at[block * kElements + i];
      mine[i / 4 * 128] = make_float4(own[0], own[1], own[2], own[3]);
    }
    ptx::named_barrier_sync(kBothGroups, 128 * Shape::kGroups);
#pragma unroll
    for (int i = 0; i < kElements; i += 4) {
      const float4 four = others[i / 4 * 128];
      const float other[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float& own = row.at[block * kElements + i + j];
        own = group == 0 ? own - lambda * other[j] : other[j] - lambda * own;
      }
    }
  }
  ptx::fence_async_proxy();
  __syncwarp();
}

// The same as store_rows for differential attention: warpgroup g makes the results of half g of every thread's rows.
template <class Shape>
__device__ QUIRE_INLINE void store_pairs(const SplitParams& params, const WgmmaCall& call, std::uint32_t place,
                                         const WgmmaState<Shape>& state) {
  const AttentionArgs& args = params.args;
  const WgmmaSegment& segment = call.segment;
  if (!is_whole(call)) {
    store_partial(params, call, state, 0);
    store_partial(params, call, state, 1);
    return;
  }
  std::int64_t to = 0;
  bool is_there = false;
  float norms[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const WgmmaPlace& at = call.places[half];
    const std::int64_t token = segment.query_start + segment.first_token + at.token;
    const std::int32_t pair = segment.kv_head * params.shape.group + at.head;
    norms[half] = WgmmaSum(call, state, half).normalise(args, 2 * pair + call.group, token, at.r < segment.num_rows);
    if (half != call.group) continue;
    to = token * params.target.token_stride + pair * params.target.head_stride;
    is_there = at.r < segment.num_rows;
  }
  WgmmaRowShare<Shape> row, given;
#pragma unroll
  for (int i = 0; i < Shape::kDv / 4; ++i) {
    const float scale = args.kv.value[row.column(i) / Shape::kDvPart].tensor_scale;
    const float first = row.of(state, 0, i) * (norms[0] * scale);
    const float second = row.of(state, 1, i) * (norms[1] * scale);
    row.at[i] = call.group == 0 ? first : second;
    given.at[i] = call.group == 0 ? second : first;
  }
  const DifferentialCombine& tail = args.differential;
  if (call.has_keys()) take_difference(tail.lambda, call.group, given, place, row);  // else all are zeros
  if (tail.subln_weight != nullptr) {
    float squares = 0.0f;
#pragma unroll
    for (const float value : row.at) squares += value * value;
    squares += __shfl_xor_sync(kFullWarp, squares, 1);
    squares += __shfl_xor_sync(kFullWarp, squares, 2);
    const float norm = tail.post_scale / sqrtf(squares / static_cast<float>(Shape::kDv) + tail.eps);
    const float* weight = tail.subln_weight + threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < Shape::kDv / 4; ++i) row.at[i] *= norm * weight[row.column(i)];
  }
  store_output(params.target, to, is_there, row);
}

}  // namespace quire::cuda
