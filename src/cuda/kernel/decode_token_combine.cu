// Combine behind the token decode kernel: the fold of combine.cu where each request is one row tile of one token.
//
// Cost: as of combine_kernel, of which the small batches here are bound by what lies between the end of the split
// kernel and that of this one. So all that depends on lengths only is done before the wait; after it every load starts
// at once, and a warp finds the row's largest logit by itself, so that the warps that share a row only add.
#include "cuda/block/finish.h"
#include "cuda/block/partials.h"
#include "cuda/block/token_work.h"
#include "cuda/kernel/combine.h"
#include "cuda/kernel/launch_behind.h"
#include "cuda/ptx/dependent.h"

namespace quire::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kAhead = 5;  // partial rows that a warp has under way

// A warp's share of the partials of a row: every kSharers-th. `at` and `slot` are the places of the first of them.
struct RowParts {
  const Partials& partials;
  std::int32_t kv_head = 0;
  std::int32_t row = 0;
  std::int32_t first = 0;
  std::int64_t at[kAhead];  // rows of this warp's partials, in the workspace
  std::int64_t slot = 0;    // of this lane's of all partials

  __device__ QUIRE_INLINE std::int64_t place(const SplitParams& params, std::int32_t i) const {
    return slot_of(params, partials, kv_head, i) * params.slot_rows + row;
  }
};

// Largest logit and sum of weights of a row of `count` partials, a lane a partial.
template <int kN>
__device__ QUIRE_INLINE void find_base(const SplitParams& params, const RowParts& parts, std::int32_t count,
                                       RowState<kN>& state) {
  const auto lane = static_cast<std::int32_t>(threadIdx.x % 32);
  float2 mine = make_float2(-INFINITY, 0.0f);
  if (lane < count) mine = params.partial_states[parts.slot * params.slot_rows + parts.row];
#pragma unroll 1
  for (std::int32_t i = lane + 32; i < count; i += 32) {
    const float2 other = params.partial_states[parts.place(params, i)];
    const float raised = fmaxf(mine.x, other.x);
    const float base = raised == -INFINITY ? 0.0f : raised;
    mine = make_float2(raised, mine.y * ptx::exp2_fast(mine.x - base) + other.y * ptx::exp2_fast(other.x - base));
  }
  state.largest = warp_max(mine.x);
  state.sum = warp_sum(mine.y * ptx::exp2_fast(mine.x - (state.largest == -INFINITY ? 0.0f : state.largest)));
}

// The sum of the warp's share of the first `count` partials, relative to the largest of all.
template <int kN, int kSharers>
__device__ QUIRE_INLINE void add_partials(const SplitParams& params, RowParts& parts, std::int32_t count,
                                          RowState<kN>& state) {
  const std::int32_t width = params.args.kv.head_size_v;
#pragma unroll
  for (float& value : state.values) value = 0.0f;
#pragma unroll 1
  for (std::int32_t begin = parts.first;;) {
    float4 fours[kAhead][kN / 4];
    float largest[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const bool there = begin + k * kSharers < count;
      largest[k] = there ? params.partial_states[parts.at[k]].x : -INFINITY;
#pragma unroll
      for (int j = 0; j < kN / 4; ++j) {
        const std::int32_t column = row_dim<kN>(4 * j);
        fours[k][j] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (there && column < width) {
          fours[k][j] = *reinterpret_cast<const float4*>(params.partial_rows + parts.at[k] * width + column);
        }
      }
    }
    if (begin == parts.first) find_base(params, parts, count, state);
    const float base = state.largest == -INFINITY ? 0.0f : state.largest;
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const float factor = ptx::exp2_fast(largest[k] - base);
#pragma unroll
      for (int j = 0; j < kN / 4; ++j) {
        state.values[4 * j] += factor * fours[k][j].x;
        state.values[4 * j + 1] += factor * fours[k][j].y;
        state.values[4 * j + 2] += factor * fours[k][j].z;
        state.values[4 * j + 3] += factor * fours[k][j].w;
      }
    }
    begin += kAhead * kSharers;
    if (begin >= count) break;
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (begin + k * kSharers < count) parts.at[k] = parts.place(params, begin + k * kSharers);
    }
  }
}

// Adds up the shares of the warps of a row, in order; its first warp has the result.
template <int kN, int kSharers>
__device__ QUIRE_INLINE void add_shares(float4 (&sums)[kWarps][kN / 4][32], RowState<kN>& state) {
  const auto warp = static_cast<std::int32_t>(threadIdx.x / 32);
  const auto lane = static_cast<std::int32_t>(threadIdx.x % 32);
  __syncthreads();
#pragma unroll
  for (int j = 0; j < kN / 4; ++j) {
    sums[warp][j][lane] =
        make_float4(state.values[4 * j], state.values[4 * j + 1], state.values[4 * j + 2], state.values[4 * j + 3]);
  }
  __syncthreads();
  if (warp % kSharers != 0) return;
#pragma unroll
  for (int w = 1; w < kSharers; ++w) {
#pragma unroll
    for (int j = 0; j < kN / 4; ++j) {
      const float4 more = sums[warp + w][j][lane];
      state.values[4 * j] += more.x;
      state.values[4 * j + 1] += more.y;
      state.values[4 * j + 2] += more.z;
      state.values[4 * j + 3] += more.w;
    }
  }
}

// Blocks (request and kv head, y): the y-th run of kWarps / kSharers rows, kSharers warps a row. Everything is done
// twice, first with nothing while the kernel waits: instructions from afar take longer than their work.
template <int kN, int kSharers>
__global__ void __launch_bounds__(kWarps * 32) combine_tokens_kernel(const __grid_constant__ SplitParams params) {
  __shared__ float4 sums[kWarps][kN / 4][32];
  const AttentionArgs& args = params.args;
  const std::int32_t heads = args.kv.num_kv_heads;
  const auto job = static_cast<std::int32_t>(blockIdx.x) / heads;
  const auto warp = static_cast<std::int32_t>(threadIdx.x / 32);
  const auto lane = static_cast<std::int32_t>(threadIdx.x % 32);
  TokenBatch batch;
  batch.find(args, params.shape, params.record, [] {});
  std::int32_t token = 0;
  KeyRange units{};
#pragma unroll
  for (int half = 0; half < TokenBatch::kHalves; ++half) {
    if (job / 32 != half) continue;
    token = __shfl_sync(kFullWarp, batch.query_start[half], job % 32);
    units.begin = __shfl_sync(kFullWarp, batch.units_before[half], job % 32);
    units.end = units.begin + __shfl_sync(kFullWarp, batch.num_units[half], job % 32);
  }
  const Partials partials = partials_of_units(params.shape, job, units, batch.total);
  RowParts parts{partials, static_cast<std::int32_t>(blockIdx.x) - job * heads,
                 static_cast<std::int32_t>(blockIdx.y) * (kWarps / kSharers) + warp / kSharers, warp % kSharers};
  const bool has_row = partials.count > 1 && parts.row < params.shape.group;
  if (!__syncthreads_or(has_row)) {
    // The grid must not end before the split kernel.
    if (blockIdx.x == 0) ptx::wait_for_primary();
    return;
  }
  const std::int32_t count = has_row ? partials.count : 0;
  if (lane < count) parts.slot = slot_of(params, partials, parts.kv_head, lane);
#pragma unroll
  for (int k = 0; k < kAhead; ++k) {
    const std::int32_t i = parts.first + k * kSharers;
    parts.at[k] = __shfl_sync(kFullWarp, parts.slot, i % 32) * params.slot_rows + parts.row;
    if (i >= 32 && i < count) parts.at[k] = parts.place(params, i);
  }
#pragma unroll 1
  for (int turn = 0; turn < 2; ++turn) {
    if (turn == 1) ptx::wait_for_primary();
    RowState<kN> rows[1];
    add_partials<kN, kSharers>(params, parts, turn == 0 ? 0 : count, rows[0]);
    if constexpr (kSharers > 1) add_shares<kN, kSharers>(sums, rows[0]);
    if (has_row && parts.first == 0) {
      finish_row(params, token, parts.kv_head * params.shape.group + parts.row, rows,
                 turn == 0 ? Pass::kRehearsal : Pass::kReal);
    }
  }
}

template <int kN>
auto choose_kernel(std::int32_t sharers) {
  return sharers == 1   ? combine_tokens_kernel<kN, 1>
         : sharers == 2 ? combine_tokens_kernel<kN, 2>
                        : combine_tokens_kernel<kN, kWarps>;
}

}  // namespace

Status launch_combine_tokens(const SplitParams& params, const Context& device, cudaStream_t stream) {
  const AttentionArgs& args = params.args;
  // Where requests have many parts each, warps share a row.
  const std::int32_t parts = params.shape.num_groups / args.num_seqs;
  const std::int32_t sharers = parts > 2 * kAhead ? kWarps : parts > kAhead ? 2 : 1;
  const std::int32_t rows_of_block = kWarps / sharers;
  const dim3 grid(static_cast<unsigned>(args.num_seqs * args.kv.num_kv_heads),
                  static_cast<unsigned>((params.shape.group + rows_of_block - 1) / rows_of_block));
  const auto kernel = args.kv.head_size_v <= 128 ? choose_kernel<4>(sharers) : choose_kernel<8>(sharers);
  return launch_behind(grid, kWarps * 32, kernel, params, device, stream);
}

}  // namespace quire::cuda
