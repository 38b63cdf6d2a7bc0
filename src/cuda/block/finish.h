// The end of a row: sink, normalisation, differential combine, log-sum-exp and store, by one warp.
#pragma once

#include "cuda/block/rows.h"
#include "cuda/kernel/split.h"
#include "cuda/ptx/mma.h"

namespace quire::cuda {

// The element of a row of 32 * kN that is a lane's i-th: up to four neighbours, so that whole words are moved.
template <int kN>
__device__ constexpr std::int32_t row_dim(int i) {
  constexpr int kWide = kN % 4 == 0 ? 4 : kN % 2 == 0 ? 2 : 1;
  return i / kWide * 32 * kWide + static_cast<std::int32_t>(threadIdx.x % 32) * kWide + i % kWide;
}

// Lane l holds elements row_dim(i) of the row; `largest` is in units of log 2.
template <int kN>
struct RowState {
  float values[kN];
  float largest = -INFINITY;
  float sum = 0.0f;
};

// Adds a sink's logit to a row's softmax; `fade` is what the row's values are worth after that.
__device__ inline void join_sink(float sink_logit, float& largest, float& sum, float& fade) {
  const float sink = sink_logit * kLog2E;
  const float raised = fmaxf(largest, sink);
  if (raised == -INFINITY) return;
  fade = ptx::exp2_fast(largest - raised);
  sum = sum * fade + ptx::exp2_fast(sink - raised);
  largest = raised;
}

// A rehearsal stores nothing: it runs while a kernel waits, so that its code is near when it counts.
enum class Pass : std::uint8_t { kRehearsal, kReal };

// Divides by the sum, the sink included, applies the values' tensor scales and stores the row's log-sum-exp.
template <int kN>
__device__ void normalise_row(const AttentionArgs& args, std::int32_t token, std::int32_t q_head, RowState<kN>& row,
                              Pass pass = Pass::kReal) {
  const std::int32_t lane = static_cast<std::int32_t>(threadIdx.x % 32);
  float fade = 1.0f;
  if (args.variant.sinks != nullptr) join_sink(args.variant.sinks[q_head], row.largest, row.sum, fade);
  const bool is_empty = row.sum == 0.0f;
  const float norm = is_empty ? 0.0f : fade / row.sum;
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    const std::int32_t d = row_dim<kN>(i);
    const std::int32_t part = args.kv.num_streams == 2 && d >= args.kv.head_size_v ? 1 : 0;
    row.values[i] = is_empty ? 0.0f : row.values[i] * (norm * args.kv.value[part].tensor_scale);
  }
  if (args.lse != nullptr && lane == 0 && pass == Pass::kReal) {
    args.lse[q_head * args.lse_head_stride + token] = is_empty ? -INFINITY : (row.largest + log2f(row.sum)) * kLn2;
  }
}

// A row to the output, in words of a lane's neighbouring elements where dtype and strides allow it.
template <int kN>
__device__ void store_row(const RowTarget& target, std::int64_t token, std::int64_t head, std::int32_t width,
                          const float (&values)[kN]) {
  constexpr int kWide = kN % 4 == 0 ? 4 : kN % 2 == 0 ? 2 : 1;
  const bool is_bf16 = target.dtype == DType::kBFloat16;
  const std::int64_t first = token * target.token_stride + head * target.head_stride;
  auto* row = static_cast<std::uint16_t*>(target.data) + first;
  if (kWide > 1 && (is_bf16 || target.dtype == DType::kFloat16) && target.inverse_scale == 0.0f &&
      reinterpret_cast<std::uintptr_t>(row) % (2 * kWide) == 0) {
#pragma unroll
    for (int i = 0; i < kN; i += kWide) {
      if (row_dim<kN>(i) >= width) continue;
      std::uint32_t words[kWide / 2 + 1];
#pragma unroll
      for (int j = 0; j < kWide / 2; ++j) {
        const float low = values[i + 2 * j];
        const float high = values[i + 2 * j + 1];
        words[j] = is_bf16 ? ptx::pack<__nv_bfloat16>(low, high) : ptx::pack<__half>(low, high);
      }
      if constexpr (kWide == 4) {
        *reinterpret_cast<uint2*>(row + row_dim<kN>(i)) = make_uint2(words[0], words[1]);
      } else {
        *reinterpret_cast<std::uint32_t*>(row + row_dim<kN>(i)) = words[0];
      }
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    if (row_dim<kN>(i) < width) store_any(target, token, head, row_dim<kN>(i), values[i]);
  }
}

// `group` is the q_head, or the pair of q_heads; rows[s] is stream s.
template <int kStreams, int kN>
__device__ void finish_row(const SplitParams& params, std::int32_t token, std::int32_t group,
                           RowState<kN> (&rows)[kStreams], Pass pass = Pass::kReal) {
  const AttentionArgs& args = params.args;
  const std::int32_t width = kStreams * args.kv.head_size_v;
#pragma unroll
  for (int stream = 0; stream < kStreams; ++stream) {
    normalise_row(args, token, group * kStreams + stream, rows[stream], pass);
  }
  float norm = 1.0f;
  const float* weight = nullptr;
  if constexpr (kStreams == 2) {
    const DifferentialCombine& tail = args.differential;
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      rows[0].values[i] -= tail.lambda * rows[1].values[i];
      if (row_dim<kN>(i) < width) squares += rows[0].values[i] * rows[0].values[i];
    }
    weight = tail.subln_weight;
    squares = warp_sum(squares);
    if (weight != nullptr) norm = tail.post_scale / sqrtf(squares / static_cast<float>(width) + tail.eps);
  }
  if (weight != nullptr) {
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      const std::int32_t d = row_dim<kN>(i);
      rows[0].values[i] *= d < width ? norm * weight[d] : 0.0f;
    }
  }
  store_row<kN>(params.target, token, group, pass == Pass::kReal ? width : 0, rows[0].values);
}

}  // namespace quire::cuda
