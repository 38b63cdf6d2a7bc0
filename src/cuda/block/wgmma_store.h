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

// A row of `Shape`'s elements, scaled, to `to`: a warp's lanes hold pairs of eight rows and write sectors.
template <class Shape>
__device__ QUIRE_INLINE void store_halves(const WgmmaState<Shape>& state, int half, float norm, std::uint16_t* to) {
  const auto lane = static_cast<int>(threadIdx.x % 4);
#pragma unroll
  for (int n = 0; n < Shape::kDv / 8; n += 4) {
    std::uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* pair = &state.values[8 * (n + i) / Shape::kBlockV][8 * (n + i) % Shape::kBlockV / 2 + 2 * half];
      words[i] = ptx::pack<typename Shape::T>(pair[0] * norm, pair[1] * norm);
    }
    turn_quad(words);
    if (to != nullptr)
      *reinterpret_cast<uint4*>(to + 8 * (n + lane)) = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

template <class Shape>
__device__ QUIRE_INLINE void store_floats(const WgmmaState<Shape>& state, int half, float norm, float* to) {
  const auto lane = static_cast<int>(threadIdx.x % 4);
  const bool is_upper = lane % 2 != 0;
#pragma unroll
  for (int n = 0; n < Shape::kDv / 8; n += 2) {
    const float* first = &state.values[8 * n / Shape::kBlockV][8 * n % Shape::kBlockV / 2 + 2 * half];
    const float* second = first + 4;
    const float x = __shfl_xor_sync(kFullWarp, is_upper ? first[0] : second[0], 1) * norm;
    const float y = __shfl_xor_sync(kFullWarp, is_upper ? first[1] : second[1], 1) * norm;
    const float own[2] = {(is_upper ? second[0] : first[0]) * norm, (is_upper ? second[1] : first[1]) * norm};
    if (to == nullptr) continue;
    *reinterpret_cast<float4*>(to + 8 * (n + lane % 2) + lane / 2 * 4) =
        is_upper ? make_float4(x, y, own[0], own[1]) : make_float4(own[0], own[1], x, y);
  }
}

// A thread's part of its rows to the output, or to the segment's slot.
template <class Shape>
__device__ QUIRE_INLINE void store_rows(const SplitParams& params, const WgmmaCall& call, WgmmaState<Shape>& state) {
  const AttentionArgs& args = params.args;
  const WgmmaSegment& segment = call.segment;
  const bool is_whole = __shfl_sync(kFullWarp, segment.slot, 0) < 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const WgmmaPlace& row = call.places[half];
    const bool is_there = row.r < segment.num_rows;
    const bool is_first = is_there && threadIdx.x % 4 == 0;
    float sum = state.sum[half][0] + state.sum[half][1];
    sum += __shfl_xor_sync(kFullWarp, sum, 1);
    sum += __shfl_xor_sync(kFullWarp, sum, 2);
    float largest = state.largest[half] == -INFINITY ? -INFINITY : state.largest[half] * call.factor;
    if (!is_whole) {
      const std::int64_t to = static_cast<std::int64_t>(segment.slot) * params.slot_rows + row.r;
      if (is_first) params.partial_states[to] = make_float2(largest, sum);
      store_floats(state, half, 1.0f, is_there ? params.partial_rows + to * Shape::kDv : nullptr);
      continue;
    }
    const std::int64_t token = segment.query_start + segment.first_token + row.token;
    const std::int32_t q_head = segment.kv_head * params.shape.group + row.head;
    float fade = 1.0f;
    if (args.variant.sinks != nullptr) join_sink(args.variant.sinks[q_head], largest, sum, fade);
    const float norm = sum == 0.0f ? 0.0f : fade / sum * args.kv.value[0].tensor_scale;
    if (args.lse != nullptr && is_first) {
      args.lse[q_head * args.lse_head_stride + token] = sum == 0.0f ? -INFINITY : (largest + log2f(sum)) * kLn2;
    }
    const std::int64_t to = token * params.target.token_stride + q_head * params.target.head_stride;
    if (params.target.dtype == DType::kFloat32) {
      store_floats(state, half, norm, is_there ? static_cast<float*>(params.target.data) + to : nullptr);
    } else {
      store_halves(state, half, norm, is_there ? static_cast<std::uint16_t*>(params.target.data) + to : nullptr);
    }
  }
}

}  // namespace quire::cuda
