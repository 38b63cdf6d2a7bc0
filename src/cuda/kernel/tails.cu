// The tails over float32 rows: the differential combine and the block-wise fp8 output. Each reads its rows once and
// writes its result once; bound by memory.
#include "core/checked.h"
#include "cuda/block/rows.h"
#include "cuda/context.h"

namespace quire::cuda {
namespace {

constexpr int kTailWarps = 4;

// O1 - lambda * O2, its RMSNorm and the post scale.
__global__ void __launch_bounds__(kTailWarps * 32)
    differential_tail(const __grid_constant__ DifferentialTailParams params) {
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kTailWarps + threadIdx.x / 32;
  if (index >= static_cast<std::int64_t>(params.num_tokens) * params.num_pairs) return;
  const auto token = static_cast<std::int32_t>(index / params.num_pairs);
  const std::int32_t seq = find_seq(params.query_start_loc, params.num_seqs, token);
  if (seq < 0 || params.query_start_loc[seq + 1] - params.query_start_loc[seq] < params.min_query_len) return;
  const std::int32_t lane = static_cast<std::int32_t>(threadIdx.x % 32);
  const float* first = params.rows + index * 2 * params.width;
  const float* second = first + params.width;
  float squares = 0.0f;
  for (std::int32_t d = lane; d < params.width; d += 32) {
    const float value = first[d] - params.tail.lambda * second[d];
    squares += value * value;
  }
  squares = warp_sum(squares);
  const bool normed = params.tail.subln_weight != nullptr;
  const float norm =
      normed ? params.tail.post_scale / sqrtf(squares / static_cast<float>(params.width) + params.tail.eps) : 1.0f;
  for (std::int32_t d = lane; d < params.width; d += 32) {
    const float value = (first[d] - params.tail.lambda * second[d]) * norm;
    store_value(params.target, token, index % params.num_pairs, d,
                normed ? value * params.tail.subln_weight[d] : value);
  }
}

// scale = absmax / 448 of a group of 128, elements value / scale.
__global__ void __launch_bounds__(kTailWarps * 32) block_quant(const __grid_constant__ BlockQuantParams params) {
  const std::int32_t groups = (params.width + 127) / 128;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kTailWarps + threadIdx.x / 32;
  if (index >= static_cast<std::int64_t>(params.num_tokens) * groups) return;
  const std::int64_t token = index / groups;
  if (token >= *params.token_end) return;
  const std::int32_t group = static_cast<std::int32_t>(index % groups);
  const std::int32_t lane = static_cast<std::int32_t>(threadIdx.x % 32);
  const float* row = params.rows + token * params.width;
  float largest = 0.0f;
  for (std::int32_t i = group * 128 + lane; i < min(group * 128 + 128, params.width); i += 32) {
    largest = fmaxf(largest, fabsf(row[i]));
  }
  const float scale = warp_max(largest) / 448.0f;
  if (lane == 0) params.scales[token * params.scale_stride + group] = scale;
  for (std::int32_t i = group * 128 + lane; i < min(group * 128 + 128, params.width); i += 32) {
    const float value = scale > 0.0f ? row[i] / scale : 0.0f;
    store_value(params.target, token, i / params.head_size, i % params.head_size, fminf(fmaxf(value, -448.0f), 448.0f));
  }
}

unsigned blocks_of(std::int64_t warps) { return static_cast<unsigned>(ceil_div(warps, kTailWarps)); }

}  // namespace

Status launch_differential_tail(const DifferentialTailParams& params, cudaStream_t stream) {
  const std::int64_t rows = static_cast<std::int64_t>(params.num_tokens) * params.num_pairs;
  differential_tail<<<blocks_of(rows), kTailWarps * 32, 0, stream>>>(params);
  return to_status(cudaGetLastError(), "differential_tail");
}

Status launch_block_quant(const BlockQuantParams& params, cudaStream_t stream) {
  const std::int64_t groups = static_cast<std::int64_t>(params.num_tokens) * ceil_div(params.width, 128);
  block_quant<<<blocks_of(groups), kTailWarps * 32, 0, stream>>>(params);
  return to_status(cudaGetLastError(), "block_quant");
}

}  // namespace quire::cuda
