// Combine: folds the partial results of rows whose keys were split, in ascending key order, and finishes the rows.
//
// Cost: reads each partial row once (a few megabytes at most, mostly from L2) and writes the output; rows that one
// segment covered are left alone after two table look-ups. Bound by latency; it is placed while the split kernel ends.
#include <string>

#include "core/checked.h"
#include "cuda/block/finish.h"
#include "cuda/block/partials.h"
#include "cuda/kernel/combine.h"
#include "cuda/kernel/launch_behind.h"
#include "cuda/kernel/small.h"
#include "cuda/ptx/dependent.h"

namespace quire::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kSharedPartials = 4;  // above so many partials the warps of a block share a row

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
  if (has_entry_jobs(shape)) {
    return partials_of_units(shape, job, {table[job], table[job + 1]}, total);
  }
  const std::int32_t group_begin = first_unit_of_group(job, total, shape.num_groups);
  const std::int32_t group_end = first_unit_of_group(job + 1, total, shape.num_groups);
  if (group_begin == group_end) return {};
  const std::int32_t entry = entry_of_unit(table, shape.num_entries, group_end - 1);
  const std::int32_t begin = table[entry];
  const std::int32_t end = table[entry + 1];
  if (end <= group_end || begin < group_begin) return {};
  return {.entry = entry,
          .count = total < shape.num_groups ? end - begin : group_of_unit(end - 1, total, shape.num_groups) - job + 1,
          .first_unit = begin,
          .first_group = job,
          .total = total,
          .at_group_begin = group_begin == begin,
          .single_units = total < shape.num_groups};
}

constexpr int kAhead = 8;  // partial rows that a warp has under way

// A warp's share of the partials: every `step`-th from `first` on; `slot` is this lane's of the first kAhead.
struct Share {
  std::int32_t kv_head = 0;
  std::int32_t first = 0;
  std::int32_t step = 1;
  std::int64_t slot = 0;
};

// Folds the share's partials of row `tile_row` of a slot.
template <int kN>
__device__ void fold_partials(const SplitParams& params, const Partials& partials, const Share& mine,
                              std::int32_t tile_row, RowState<kN>& state) {
  const std::int32_t lane = static_cast<std::int32_t>(threadIdx.x % 32);
  const std::int32_t width = params.args.kv.num_streams * params.args.kv.head_size_v;
#pragma unroll
  for (float& value : state.values) value = 0.0f;
  std::int64_t slot = mine.slot;
#pragma unroll 1
  for (std::int32_t base = mine.first;;) {
    const std::int32_t i_th = base + lane * mine.step;
    const bool there = lane < kAhead && i_th < partials.count;
    if (base != mine.first && there) slot = slot_of(params, partials, mine.kv_head, i_th);
    const std::int64_t at = slot * params.slot_rows + tile_row;
    const float2 part = there ? params.partial_states[at] : make_float2(-INFINITY, 0.0f);
    float4 fours[kN / 4][kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const std::int64_t from = __shfl_sync(kFullWarp, at, i) * width;
#pragma unroll
      for (int j = 0; j < kN / 4; ++j) {
        const std::int32_t column = row_dim<kN>(4 * j);
        fours[j][i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (base + i * mine.step < partials.count && column < width) {
          fours[j][i] = *reinterpret_cast<const float4*>(params.partial_rows + from + column);
        }
      }
    }
    const float raised = fmaxf(state.largest, warp_max(part.x));
    const float base_logit = raised == -INFINITY ? 0.0f : raised;
    const float fade = ptx::exp2_fast(state.largest - base_logit);
    const float share = ptx::exp2_fast(part.x - base_logit);
    state.largest = raised;
    state.sum = state.sum * fade + warp_sum(part.y * share);
#pragma unroll
    for (float& value : state.values) value *= fade;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const float factor = __shfl_sync(kFullWarp, share, i);
#pragma unroll
      for (int j = 0; j < kN / 4; ++j) {
        state.values[4 * j] += factor * fours[j][i].x;
        state.values[4 * j + 1] += factor * fours[j][i].y;
        state.values[4 * j + 2] += factor * fours[j][i].z;
        state.values[4 * j + 3] += factor * fours[j][i].w;
      }
    }
    base += kAhead * mine.step;
    if (base >= partials.count) break;
  }
}

// Folds the warps' states in order; the first warp has the result.
template <int kN>
__device__ void fold_warps(RowState<kN>& state, float* shared) {
  const std::int32_t lane = static_cast<std::int32_t>(threadIdx.x % 32);
  const std::int32_t warp = static_cast<std::int32_t>(threadIdx.x / 32);
  float* mine = shared + warp * (32 * kN + 2);
#pragma unroll
  for (int j = 0; j < kN; ++j) mine[2 + lane + 32 * j] = state.values[j];
  if (lane == 0) {
    mine[0] = state.largest;
    mine[1] = state.sum;
  }
  __syncthreads();
  if (warp == 0) {
    float largest = -INFINITY;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) largest = fmaxf(largest, shared[w * (32 * kN + 2)]);
    const float base = largest == -INFINITY ? 0.0f : largest;
    state = {};
    state.largest = largest;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float* part = shared + w * (32 * kN + 2);
      const float share = ptx::exp2_fast(part[0] - base);
      state.sum += part[1] * share;
#pragma unroll
      for (int j = 0; j < kN; ++j) state.values[j] += part[2 + lane + 32 * j] * share;
    }
  }
  __syncthreads();
}

// Blocks (job and combine_heads kv heads, y): the rows of the job's row tile are dealt out over y. What depends on
// lengths only is done before the split kernel has ended: it shares them with this kernel, and the table of long
// batches is either made here or by a kernel before it.
// kMayDeal: row tiles may be dealt out, whose code would delay small batches.
template <int kStreams, int kN, bool kMayDeal>
__global__ void __launch_bounds__(kWarps * 32) combine_kernel(const __grid_constant__ SplitParams params) {
  __shared__ float shared[kWarps * (32 * kN + 2)];
  __shared__ std::int32_t own_table[kMaxRecords + 1];
  __shared__ TileRecord records[kMaxRecords];
  const AttentionArgs& args = params.args;
  const ScheduleShape& shape = params.shape;
  const std::int32_t parts = args.kv.num_kv_heads / params.combine_heads;
  const auto job = static_cast<std::int32_t>(blockIdx.x) / parts;
  const auto first_head = static_cast<std::int32_t>(blockIdx.x) % parts * params.combine_heads;
  const std::int32_t* table = params.table;
  if (shape.tokens_per_tile == 0 || is_small(shape)) {
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
  if (shape.tokens_per_tile == 0 && table == own_table) {
    first_token = records[partials.entry].query_start;
    num_rows = records[partials.entry].query_len * shape.group;
  } else {
    const EntryPlace place =
        kMayDeal ? place_of_dealt_entry(args, shape, partials.entry) : place_of_entry(args, shape, partials.entry);
    const TileRows tile = tile_rows(args, shape, place.seq, place.tile, params.record);
    first_token = tile.lengths.query_start + tile.first_token;
    num_rows = tile.num_tokens * shape.group;
  }
  const auto warp = static_cast<std::int32_t>(threadIdx.x / 32);
  const bool sharing =
      partials.count > kSharedPartials && num_rows <= static_cast<std::int32_t>(gridDim.y) && params.combine_heads == 1;
  Share share{.kv_head = first_head, .first = sharing ? warp : 0, .step = sharing ? kWarps : 1};
  const std::int32_t i_th = share.first + static_cast<std::int32_t>(threadIdx.x % 32) * share.step;
  if (threadIdx.x % 32 < kAhead && i_th < partials.count) share.slot = slot_of(params, partials, first_head, i_th);
  const auto y = static_cast<std::int32_t>(blockIdx.y);
  const auto blocks = static_cast<std::int32_t>(gridDim.y);
  const std::int32_t first_row = sharing ? y : y * kWarps + warp;
  // Balanced splits are folded twice, first without partials and for nothing: that brings the code near while the split
  // kernel ends. Long batches have waited for that already.
  const std::int32_t count = partials.count;
#pragma unroll 1
  for (int pass = shape.is_fixed() || table != own_table ? 1 : 0; pass < 2; ++pass) {
    partials.count = pass == 0 ? 0 : count;
    if (pass == 1) ptx::wait_for_primary();
#pragma unroll 1
    for (std::int32_t i = first_row; i < num_rows * params.combine_heads; i += sharing ? blocks : blocks * kWarps) {
      const std::int32_t kv_head = first_head + i / num_rows;
      const std::int32_t r = i % num_rows;
      if (kv_head != share.kv_head) {
        share.kv_head = kv_head;
        if (threadIdx.x % 32 < kAhead && i_th < count) share.slot = slot_of(params, partials, kv_head, i_th);
      }
      RowState<kN> rows[kStreams];
#pragma unroll
      for (int stream = 0; stream < kStreams; ++stream) {
        const std::int32_t tile_row = stream * params.stream_rows + r;
        fold_partials(params, partials, share, tile_row, rows[stream]);
        if (sharing) fold_warps(rows[stream], shared);
      }
      if (pass == 0) break;
      const std::int32_t token = first_token + r / shape.group;
      if (!sharing || warp == 0) finish_row(params, token, kv_head * shape.group + r % shape.group, rows);
    }
  }
}

template <bool kMayDeal>
auto combine_for(const KVSource& kv) {
  return kv.num_streams == 2     ? combine_kernel<2, 4, kMayDeal>
         : kv.head_size_v <= 128 ? combine_kernel<1, 4, kMayDeal>
                                 : combine_kernel<1, 8, kMayDeal>;
}

}  // namespace

Status launch_combine(const SplitParams& params, const Context& device, cudaStream_t stream) {
  const AttentionArgs& args = params.args;
  const std::int64_t jobs = has_entry_jobs(params.shape) ? params.shape.num_entries : params.shape.num_groups;
  const auto kernel = params.shape.deals_tiles ? combine_for<true>(args.kv) : combine_for<false>(args.kv);
  return launch_behind(dim3(static_cast<unsigned>(jobs * (args.kv.num_kv_heads / params.combine_heads)),
                            static_cast<unsigned>(params.combine_rows)),
                       kWarps * 32, kernel, params, device, stream);
}

}  // namespace quire::cuda
