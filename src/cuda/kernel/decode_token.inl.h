// The token decode kernel: one query token a request, up to 64 requests, terms that only mask, 16-bit paged caches.
//
// Cost: as of the decode kernel, whose arithmetic and schedule it shares. What differs is the way to the first load:
// small batches are bound by it, and an instruction that is executed once costs 10 clocks and more there. So a warp
// keeps the batch's lengths in its own registers (no table, no barrier), what a tile may need besides its products is
// left out (row scales, trees, logit terms, tiles of several pages).
#pragma once

#include "cuda/block/token_work.h"
#include "cuda/kernel/decode.inl.h"

namespace quire::cuda {

// One tile of 16 keys from `first_key` on, of which those in `keys` are seen.
template <class Shape>
__device__ QUIRE_INLINE void fold_token_tile(KeyRange keys, std::int32_t first_key, std::uint32_t stage, float factor,
                                             DecodeState<Shape>& state) {
  using T = DecodeNumber<Shape>;
  float scores[1][4] = {};
  score_stream<Shape, false>(state, stage, 0, scores);
#pragma unroll
  for (float& score : scores[0]) score *= factor;
  if (first_key < keys.begin || first_key + Shape::kKeys > keys.end) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::int32_t kv_pos = first_key + static_cast<std::int32_t>(threadIdx.x % 32 / 4) + i / 2 * 8;
      if (kv_pos < keys.begin || kv_pos >= keys.end) scores[0][i] = -INFINITY;
    }
  }
  softmax_step(state, 0, scores[0]);
  std::uint32_t weights[1][2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    weights[0][half] = ptx::transpose_8x8(ptx::pack<T>(scores[0][2 * half], scores[0][2 * half + 1]));
  }
  add_values<Shape, false>(weights, stage + Shape::kKeys * Shape::kPitchK, 0, state);
}

template <class Shape>
__global__ void __launch_bounds__(Shape::kWarps * 32, Shape::kBlocks)
    token_decode_kernel(const __grid_constant__ SplitParams params) {
  extern __shared__ __align__(128) std::byte token_shared[];
  ptx::launch_dependents();
  const AttentionArgs& args = params.args;
  const ScheduleShape& shape = params.shape;
  const std::int32_t heads = args.kv.num_kv_heads;
  const std::int32_t group = static_cast<std::int32_t>(blockIdx.x) / heads;
  const std::int32_t kv_head = static_cast<std::int32_t>(blockIdx.x) - group * heads;
  TokenBatch batch;
  batch.find(args, shape, params.record, [&] { prefetch_metadata(args); });
  const KeyRange units{first_unit_of_group(group, batch.total, shape.num_groups),
                       first_unit_of_group(group + 1, batch.total, shape.num_groups)};
  if (units.begin == units.end) return;
  using Cursor = TokenCursor<Shape>;
  Cursor cursor{params, decltype(Cursor::key)::of(args.kv.key[0], kv_head),
                decltype(Cursor::value)::of(args.kv.value[0], kv_head),
                ptx::shared_address(token_shared) +
                    threadIdx.x / 32 * static_cast<std::uint32_t>(Shape::kStages * Shape::kStageBytes),
                units.begin};
  cursor.choose_policy((units.end - units.begin) * (shape.unit_keys / Cursor::kStep));
  const float factor = args.variant.scale * args.query_scale * args.kv.key[0].tensor_scale * kLog2E;
  DecodeState<Shape> state;
  int stage = 0;
  int ahead = 0;  // tiles under way, or empty places for them
#pragma unroll 1
  for (std::int32_t unit = units.begin; unit < units.end;) {
    Segment segment;
    bool is_new = true;
    std::int32_t first_key = 0;
#pragma unroll 1
    do {
      // The loads come first: the rest of a segment's beginning takes as long as they do.
#pragma unroll 1
      for (; ahead < Shape::kAhead; ++ahead) cursor.issue(batch, units);
      if (is_new) {
        is_new = false;
        segment = batch.segment(shape, heads, unit, units, static_cast<std::int32_t>(blockIdx.x));
        first_key = segment.keys.begin + static_cast<std::int32_t>(threadIdx.x / 32) * Shape::kKeys;
        load_queries<Shape>(args, segment, shape.group, nullptr, state);
        state.reset();
        if (first_key >= segment.keys.end) break;
      }
      ptx::cp_async_wait<Shape::kAhead - 1>();
      __syncwarp();
      fold_token_tile<Shape>({segment.rows.keys.begin, segment.keys.end}, first_key,
                             cursor.ring + static_cast<std::uint32_t>(stage * Shape::kStageBytes), factor, state);
      __syncwarp();
      stage = stage + 1 == Shape::kStages ? 0 : stage + 1;
      --ahead;
      first_key += Cursor::kStep;
    } while (first_key < segment.keys.end);
    merge_warps<Shape>(params, segment, state, false, token_shared + Shape::kRingBytes);
    unit += segment.num_units;
  }
  ptx::cp_async_wait<0>();
}

}  // namespace quire::cuda
