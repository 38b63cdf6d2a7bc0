// Combine: folds the partial results of rows whose keys were split, in ascending key order, and finishes the rows.
//
// Cost: reads each partial row once (a few megabytes at most, mostly from L2) and writes the output; rows that one
// segment covered are left alone after two table look-ups. Bound by latency; it is placed while the split kernel ends.
#include <string>

#include "core/checked.h"
#include "cuda/block/finish.h"
#include "cuda/block/schedule.h"
#include "cuda/context.h"
#include "cuda/kernel/combine.h"
#include "cuda/ptx/dependent.h"

namespace quire::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kMaxPerLane = 8;      // rows of at most 256 elements
constexpr int kSharedPartials = 4;  // above so many partials the four warps of a block share a row

// The partial results of a row tile, in ascending key order.
struct Partials {
  std::int32_t entry = 0;
  std::int32_t count = 0;  // at most 1: nothing to fold
  std::int32_t first_unit = 0;
  std::int32_t first_group = 0;
  std::int32_t total = 0;
  bool at_group_begin = false;
  bool single_units = false;  // fewer units than groups: every unit is a share of its own
};

// Whether a job is a row tile; else it is a group, and folds the row tile that the group begins and does not end.
QUIRE_HD bool has_entry_jobs(const ScheduleShape& shape) {
  return shape.is_fixed() || shape.num_entries <= shape.num_groups;
}

// What job `job` has to fold.
__device__ Partials partials_of(const ScheduleShape& shape, const std::int32_t* table, std::int32_t job) {
  if (shape.is_fixed()) {
    const std::int32_t begin = table[job];
    return {.entry = job, .count = table[job + 1] - begin, .first_unit = begin};
  }
  const std::int32_t total = table[shape.num_entries];
  const bool single = total < shape.num_groups;
  if (has_entry_jobs(shape)) {
    const std::int32_t begin = table[job];
    const std::int32_t end = table[job + 1];
    if (begin == end) return {};
    const std::int32_t first = group_of_unit(begin, total, shape.num_groups);
    return {.entry = job,
            .count = single ? end - begin : group_of_unit(end - 1, total, shape.num_groups) - first + 1,
            .first_unit = begin,
            .first_group = first,
            .total = total,
            .at_group_begin = first_unit_of_group(first, total, shape.num_groups) == begin,
            .single_units = single};
  }
  const std::int32_t group_begin = first_unit_of_group(job, total, shape.num_groups);
  const std::int32_t group_end = first_unit_of_group(job + 1, total, shape.num_groups);
  if (group_begin == group_end) return {};
  const std::int32_t entry = entry_of_unit(table, shape.num_entries, group_end - 1);
  const std::int32_t begin = table[entry];
  const std::int32_t end = table[entry + 1];
  if (end <= group_end || begin < group_begin) return {};
  return {.entry = entry,
          .count = single ? end - begin : group_of_unit(end - 1, total, shape.num_groups) - job + 1,
          .first_unit = begin,
          .first_group = job,
          .total = total,
          .at_group_begin = group_begin == begin,
          .single_units = single};
}

__device__ std::int64_t slot_of(const SplitParams& params, const Partials& partials, std::int32_t kv_head,
                                std::int32_t i) {
  const std::int32_t heads = params.args.kv.num_kv_heads;
  if (params.shape.is_fixed()) return static_cast<std::int64_t>(partials.first_unit + i) * heads + kv_head;
  const std::int32_t group = partials.single_units
                                 ? group_of_unit(partials.first_unit + i, partials.total, params.shape.num_groups)
                                 : partials.first_group + i;
  const bool is_second = i == 0 && !partials.at_group_begin;
  return 2 * (static_cast<std::int64_t>(group) * heads + kv_head) + (is_second ? 1 : 0);
}

// Adds `count` partial rows, lane i knowing the place and the weight of the i-th, to `state`.
__device__ void add_rows(const SplitParams& params, std::int64_t at, float share, std::int32_t count,
                         RowState<kMaxPerLane>& state) {
  const std::int32_t width = params.args.kv.num_streams * params.args.kv.head_size_v;
  constexpr int kAhead = 8;  // rows whose loads are under way together
  for (std::int32_t base = 0; base < count; base += kAhead) {
#pragma unroll
    for (int j = 0; j < kMaxPerLane; j += 4) {
      if (32 * j >= width) break;
      const std::int32_t column = row_dim<kMaxPerLane>(j);
      float4 fours[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const std::int64_t from = __shfl_sync(kFullWarp, at, base + i);
        fours[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (base + i < count && column < width) {
          fours[i] = *reinterpret_cast<const float4*>(params.partial_rows + from * width + column);
        }
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const float factor = __shfl_sync(kFullWarp, share, base + i);
        if (base + i >= count) continue;
        state.values[j] += factor * fours[i].x;
        state.values[j + 1] += factor * fours[i].y;
        state.values[j + 2] += factor * fours[i].z;
        state.values[j + 3] += factor * fours[i].w;
      }
    }
  }
}

// Every `step`-th partial of a stream's row, from `first` on; `slot` is this lane's of the first 32.
__device__ void fold_partials(const SplitParams& params, const Partials& partials, std::int32_t kv_head,
                              std::int32_t tile_row, std::int32_t first, std::int32_t step, std::int64_t slot,
                              RowState<kMaxPerLane>& state) {
  const std::int32_t lane = static_cast<std::int32_t>(threadIdx.x % 32);
#pragma unroll
  for (float& value : state.values) value = 0.0f;
  for (std::int32_t base = first; base < partials.count; base += 32 * step) {
    const std::int32_t mine = base + lane * step;
    if (base != first && mine < partials.count) slot = slot_of(params, partials, kv_head, mine);
    const std::int64_t at = mine < partials.count ? slot * params.slot_rows + tile_row : -1;
    const float2 part = at >= 0 ? params.partial_states[at] : make_float2(-INFINITY, 0.0f);
    const float raised = fmaxf(state.largest, warp_max(part.x));
    if (raised == -INFINITY) continue;
    const float fade = exp2f(state.largest - raised);
    const float share = exp2f(part.x - raised);
    state.largest = raised;
    state.sum = state.sum * fade + warp_sum(part.y * share);
#pragma unroll
    for (float& value : state.values) value *= fade;
    add_rows(params, at, share, min(32, (partials.count - base + step - 1) / step), state);
  }
}

// Folds the four warps' states in order; the first warp has the result.
__device__ void fold_warps(RowState<kMaxPerLane>& state, float* shared) {
  const std::int32_t lane = static_cast<std::int32_t>(threadIdx.x % 32);
  const std::int32_t warp = static_cast<std::int32_t>(threadIdx.x / 32);
  float* mine = shared + warp * (32 * kMaxPerLane + 2);
#pragma unroll
  for (int j = 0; j < kMaxPerLane; ++j) mine[2 + lane + 32 * j] = state.values[j];
  if (lane == 0) {
    mine[0] = state.largest;
    mine[1] = state.sum;
  }
  __syncthreads();
  if (warp == 0) {
    for (int other = 1; other < kWarps; ++other) {
      const float* theirs = shared + other * (32 * kMaxPerLane + 2);
      const float raised = fmaxf(state.largest, theirs[0]);
      if (raised == -INFINITY) continue;
      const float fade = exp2f(state.largest - raised);
      const float share = exp2f(theirs[0] - raised);
      state.largest = raised;
      state.sum = state.sum * fade + theirs[1] * share;
#pragma unroll
      for (int j = 0; j < kMaxPerLane; ++j)
        state.values[j] = state.values[j] * fade + theirs[2 + lane + 32 * j] * share;
    }
  }
  __syncthreads();
}

// Blocks (job and kv head, y): the rows of the job's row tile are dealt out over y. What depends on lengths only is
// done before the split kernel has ended: it shares them with this kernel, and the table of long batches is either made
// here or by a kernel before it.
template <int kStreams>
__global__ void __launch_bounds__(kWarps * 32) combine_kernel(const __grid_constant__ SplitParams params) {
  __shared__ float shared[kWarps * (32 * kMaxPerLane + 2)];
  __shared__ std::int32_t own_table[kMaxRecords + 1];
  __shared__ TileRecord records[kMaxRecords];
  const AttentionArgs& args = params.args;
  const ScheduleShape& shape = params.shape;
  const auto job = static_cast<std::int32_t>(blockIdx.x) / args.kv.num_kv_heads;
  const auto kv_head = static_cast<std::int32_t>(blockIdx.x) % args.kv.num_kv_heads;
  const std::int32_t* table = params.table;
  if (shape.tokens_per_tile == 0) {
    if (shape.num_entries <= kMaxRecords) {
      build_table<kWarps * 32>(args, shape, own_table, reinterpret_cast<std::int32_t*>(shared), records, params.record);
      table = own_table;
    } else {
      ptx::wait_for_primary();
    }
  }
  Partials partials = partials_of(shape, table, job);
  if (shape.is_fixed() && table[shape.num_entries] > shape.num_slots / args.kv.num_kv_heads) partials.count = 0;
  if (partials.count <= 1) {
    // The grid must not end before the split kernel.
    if (blockIdx.x == 0) ptx::wait_for_primary();
    return;
  }
  std::int32_t first_token = 0;
  std::int32_t num_rows = 0;
  if (table == own_table) {
    first_token = records[partials.entry].query_start;
    num_rows = records[partials.entry].query_len * shape.group;
  } else {
    const std::int32_t seq = seq_of_entry(args, shape, partials.entry);
    const TileRows tile = tile_rows(args, shape, seq, partials.entry - first_entry(args, shape, seq), params.record);
    first_token = tile.lengths.query_start + tile.first_token;
    num_rows = tile.num_tokens * shape.group;
  }
  const auto warp = static_cast<std::int32_t>(threadIdx.x / 32);
  const bool sharing = partials.count > kSharedPartials;
  const std::int32_t step = sharing ? kWarps : 1;
  const std::int32_t first = sharing ? warp : 0;
  const std::int32_t mine = first + static_cast<std::int32_t>(threadIdx.x % 32) * step;
  const std::int64_t slot = mine < partials.count ? slot_of(params, partials, kv_head, mine) : 0;
  const auto y = static_cast<std::int32_t>(blockIdx.y);
  const auto blocks = static_cast<std::int32_t>(gridDim.y);
  const std::int32_t first_row = sharing ? y : y * kWarps + warp;
  ptx::wait_for_primary();
  for (std::int32_t r = first_row; r < num_rows; r += sharing ? blocks : blocks * kWarps) {
    RowState<kMaxPerLane> rows[kStreams];
#pragma unroll
    for (int stream = 0; stream < kStreams; ++stream) {
      const std::int32_t tile_row = stream * params.stream_rows + r;
      fold_partials(params, partials, kv_head, tile_row, first, step, slot, rows[stream]);
      if (sharing) fold_warps(rows[stream], shared);
    }
    const std::int32_t token = first_token + r / shape.group;
    if (!sharing || warp == 0) finish_row(params, token, kv_head * shape.group + r % shape.group, rows);
  }
}

}  // namespace

Status launch_combine(const SplitParams& params, const Context& device, cudaStream_t stream) {
  const AttentionArgs& args = params.args;
  const std::int64_t jobs = has_entry_jobs(params.shape) ? params.shape.num_entries : params.shape.num_groups;
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(jobs * args.kv.num_kv_heads), static_cast<unsigned>(params.combine_rows));
  config.blockDim = dim3(kWarps * 32);
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = device.major >= 9 ? 1 : 0;
  const auto kernel = args.kv.num_streams == 2 ? combine_kernel<2> : combine_kernel<1>;
  // A block is placed beside those of the split kernel only if it asks for the same division of shared memory and L1.
  QUIRE_CUDA_RETURN_IF_ERROR(
      cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared));
  return to_status(cudaLaunchKernelEx(&config, kernel, params), "combine_kernel");
}

}  // namespace quire::cuda
