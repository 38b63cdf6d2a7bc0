// The tile kernel on wgmma: many query rows a request (prompts and large trees), on Hopper, from 16-bit paged caches.
//
// Cost: 4 * head_size flops a row and visible key in m64n128k16 products; K and V of a row tile are read once for the
// 128 rows of all q_heads of a kv head. Bound by the softmax, which takes longer than the products it runs beside: two
// warps keep the copy engine busy with whole pages straight into the swizzled form that wgmma reads; two warpgroups of
// 64 rows each hold scores, weights and sums in registers. The products of the next keys and of the last weights run
// while the softmax of the keys between them is computed, and beside the softmax of the other warpgroup. Differential
// attention: 2 * head_size + 4 * head_size_v flops a row of a stream and key; each warpgroup has a stream of 64 pairs.
#pragma once

#include "core/macros.h"
#include "cuda/block/wgmma_loader.h"
#include "cuda/block/wgmma_rows.h"
#include "cuda/block/wgmma_store.h"
#include "cuda/ptx/dependent.h"
#include "cuda/ptx/wgmma.h"

namespace quire::cuda {

// Named barriers: 2 and 3 are each warpgroup's turn to start products.
constexpr int kTurn = 2;

// Starts scores = Q * K^T.
template <class Shape>
__device__ QUIRE_INLINE void multiply_keys(std::uint32_t queries, std::uint32_t keys,
                                           float (&scores)[Shape::kKeys / 2]) {
  const std::uint64_t q = ptx::matrix_descriptor(queries, 1024);
  const std::uint64_t k = ptx::matrix_descriptor(keys, Shape::kColumnsK * 1024);
#pragma unroll
  for (int step = 0; step < Shape::kD / 16; ++step) {
    const auto inside = static_cast<std::uint32_t>(step % 4 * 32);
    ptx::wgmma_shared<typename Shape::T>(
        scores, ptx::moved(q, static_cast<std::uint32_t>(step / 4 * Shape::kRows * 128) + inside),
        ptx::moved(k, static_cast<std::uint32_t>(step / 4 * 1024) + inside), step > 0);
  }
}

// Starts values += weights * V.
template <class Shape>
__device__ QUIRE_INLINE void multiply_values(std::uint32_t values, WgmmaState<Shape>& state) {
  constexpr std::uint32_t kRows = Shape::kColumnsV * 1024;
  const std::uint64_t v = ptx::matrix_descriptor(values, kRows, 1024);
#pragma unroll
  for (int step = 0; step < Shape::kKeys / 16; ++step) {
#pragma unroll
    for (int block = 0; block < Shape::kBlocksV; ++block) {
      const std::uint32_t at = static_cast<std::uint32_t>(step) * 2 * kRows +
                               static_cast<std::uint32_t>(block * (Shape::kBlockV / 64) * 1024);
      ptx::wgmma_registers<typename Shape::T>(state.values[block], state.weights[step], ptx::moved(v, at), true);
    }
  }
}

// Whether some of a stage's rows are outside of `keys`.
template <class Shape>
__device__ QUIRE_INLINE bool is_edge(KeyRange keys, std::int32_t first) {
  return first < keys.begin || first + Shape::kKeys > keys.end;
}

// Rows of values outside of `keys` were not loaded, or hold what nobody wrote: zeros in their place, so that weights of
// zero hide them. Both warpgroups come here.
template <class Shape>
__device__ QUIRE_INLINE void clear_values(KeyRange keys, std::int32_t first, std::uint32_t values) {
  for (int i = static_cast<int>(threadIdx.x % (128 * Shape::kGroups)); i < Shape::kKeys * Shape::kColumnsV * 8;
       i += 128 * Shape::kGroups) {
    const std::int32_t key = first + i / (64 * Shape::kColumnsV) * 8 + i / 8 % 8;
    if (key >= keys.begin && key < keys.end) continue;
    asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(values + static_cast<std::uint32_t>(i * 16)), "r"(0)
                 : "memory");
  }
  ptx::fence_async_proxy();
  ptx::named_barrier_sync(kBothGroups, 128 * Shape::kGroups);
}

// This warp has read what the barrier guards.
__device__ QUIRE_INLINE void release(std::uint32_t barrier) {
  if (threadIdx.x % 32 == 0) ptx::barrier_arrive(barrier);
}

// All stages of a segment that has keys, but for the products with the last values.
template <class Shape>
__device__ QUIRE_INLINE void run_stages(const WgmmaCall& call, WgmmaShared<Shape> shared,
                                        RingPlace<Shape::kStages>& place, WgmmaState<Shape>& state) {
  const std::uint32_t queries = shared.queries() + static_cast<std::uint32_t>(call.group * 64 * 128);
  float scores[Shape::kKeys / 2];
  float fade[2];
  std::int32_t first = call.begin;
  const SeenKeys<Shape> seen_first(call, state, first);
  ptx::barrier_wait(shared.full_keys(place.stage), place.parity);
  ptx::wgmma_fence();
  multiply_keys<Shape>(queries, shared.keys(place.stage, stream_of<Shape>(call.group)), scores);
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
  ptx::pin(scores);
  release(shared.empty_keys(place.stage));
  seen_first.hide_others(scores);
  raise_largest(call.factor, state, scores, fade);
  weigh<Shape, 0, Shape::kKeys>(call.factor, state, scores);
  pack_weights(scores, state);
#pragma unroll 1
  for (first += Shape::kKeys; first < call.keys.end; first += Shape::kKeys) {
    const SeenKeys<Shape> seen(call, state, first);
    const RingPlace<Shape::kStages> last = place;
    place.advance();
    ptx::barrier_wait(shared.full_keys(place.stage), place.parity);
    if (is_edge<Shape>(call.keys, first - Shape::kKeys)) {  // before the turn, as both warpgroups meet
      ptx::barrier_wait(shared.full_values(last.stage), last.parity);
      clear_values<Shape>(call.keys, first - Shape::kKeys, shared.values(last.stage));
    }
    if (call.takes_turns) ptx::named_barrier_sync(kTurn + call.group, 128 * Shape::kGroups);
    ptx::wgmma_fence();
    multiply_keys<Shape>(queries, shared.keys(place.stage, stream_of<Shape>(call.group)), scores);
    ptx::wgmma_commit();
    ptx::barrier_wait(shared.full_values(last.stage), last.parity);
    ptx::wgmma_fence();
    multiply_values(shared.values(last.stage), state);
    ptx::wgmma_commit();
    if (call.takes_turns) ptx::named_barrier_arrive(kTurn + 1 - call.group, 128 * Shape::kGroups);
    ptx::wgmma_wait<1>();
    ptx::pin(scores);
    release(shared.empty_keys(place.stage));
    seen.hide_others(scores);
    const bool moved = raise_largest(call.factor, state, scores, fade);
    weigh<Shape, 0, Shape::kKeys / 2>(call.factor, state, scores);
    // Sums are never negative; the branch keeps the compiler from waiting for the products before the softmax.
    if (state.sum[0][0] + state.sum[0][1] + state.sum[1][0] + state.sum[1][1] < 0.0f) __nanosleep(0);
    ptx::wgmma_wait<0>();
#pragma unroll
    for (auto& block : state.values) ptx::pin(block);
    release(shared.empty_values(last.stage));
    if (moved) fade_values(state, fade);
    // Packed one by one as they come.
    weigh<Shape, Shape::kKeys / 2, Shape::kKeys>(call.factor, state, scores);
    pack_weights(scores, state);
  }
}

// The products with the last values, which the warpgroup keeps until leave_values().
template <class Shape>
__device__ QUIRE_INLINE void finish_stages(const WgmmaCall& call, WgmmaShared<Shape> shared,
                                           const RingPlace<Shape::kStages>& place, WgmmaState<Shape>& state) {
  const std::int32_t last = call.begin + (call.keys.end - 1 - call.begin) / Shape::kKeys * Shape::kKeys;
  ptx::barrier_wait(shared.full_values(place.stage), place.parity);
  if (is_edge<Shape>(call.keys, last)) clear_values<Shape>(call.keys, last, shared.values(place.stage));
  ptx::wgmma_fence();
  multiply_values(shared.values(place.stage), state);
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
#pragma unroll
  for (auto& block : state.values) ptx::pin(block);
}

template <class Shape>
__device__ QUIRE_INLINE void leave_values(WgmmaShared<Shape> shared, RingPlace<Shape::kStages>& place) {
  release(shared.empty_values(place.stage));
  place.advance();
}

// The stages of a segment for a warpgroup without rows.
template <class Shape>
__device__ QUIRE_INLINE void skip_stages(const WgmmaCall& call, WgmmaShared<Shape> shared,
                                         RingPlace<Shape::kStages>& place) {
  for (std::int32_t first = call.begin; first < call.keys.end; first += Shape::kKeys) {
    ptx::barrier_wait(shared.full_keys(place.stage), place.parity);
    release(shared.empty_keys(place.stage));
    ptx::barrier_wait(shared.full_values(place.stage), place.parity);
    if (is_edge<Shape>(call.keys, first)) clear_values<Shape>(call.keys, first, shared.values(place.stage));
    leave_values(shared, place);
  }
}

template <class Shape>
__device__ QUIRE_INLINE void run_rows(const SplitParams& params, WgmmaShared<Shape> shared, int group) {
  const AttentionArgs& args = params.args;
  RingPlace<Shape::kStages> place;
  RingPlace<Shape::kSegments> told;
  RingPlace<1> queries;
  WgmmaState<Shape> state;
  const int rows_before = Shape::kStreams == 1 ? group * 64 : 0;
  const WgmmaPlace places[2] = {{params.shape.group, rows_before, 0}, {params.shape.group, rows_before, 1}};
  const float factor =
      args.variant.scale * args.query_scale * args.kv.key[stream_of<Shape>(group)].tensor_scale * kLog2E;
  if (group == 1) ptx::named_barrier_arrive(kTurn, 128 * Shape::kGroups);
  for (;;) {
    ptx::barrier_wait(shared.full_segment(told.stage), told.parity);
    const WgmmaSegment& segment = *shared.segment(told.stage);
    const auto num_rows = __shfl_sync(kFullWarp, segment.num_rows, 0);
    if (num_rows == 0) break;
    const WgmmaCall call{
        .args = args,
        .segment = segment,
        .places = places,
        .factor = factor,
        .group = group,
        .begin = __shfl_sync(kFullWarp, segment.begin, 0),
        .keys = {__shfl_sync(kFullWarp, segment.keys.begin, 0), __shfl_sync(kFullWarp, segment.keys.end, 0)},
        .interior = {__shfl_sync(kFullWarp, segment.interior.begin, 0),
                     __shfl_sync(kFullWarp, segment.interior.end, 0)},
        .takes_turns = Shape::kStreams == 2 || num_rows > 64};
    const bool has_rows = rows_before < num_rows;
    const bool has_keys = call.has_keys();
    clear(state);
    ptx::barrier_wait(shared.full_queries(), queries.parity);
    if (has_rows && has_keys) {
      run_stages(call, shared, place, state);
    } else {
      skip_stages<Shape>(call, shared, place);
    }
    release(shared.empty_queries());
    queries.advance();
    if (has_rows) {
      if (has_keys) finish_stages(call, shared, place, state);
      if constexpr (Shape::kStreams == 1) {
        if (has_keys) leave_values(shared, place);
        store_rows<Shape>(params, call, state);
      } else {
        store_pairs<Shape>(params, call, shared.values(place.stage), state);
        if (has_keys) leave_values(shared, place);
      }
    }
    __syncwarp();
    release(shared.empty_segment(told.stage));
    told.advance();
  }
}

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1) wgmma_kernel(const __grid_constant__ WgmmaParams params) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ std::byte wgmma_shared_bytes[];
  const WgmmaShared<Shape> shared{(ptx::shared_address(wgmma_shared_bytes) + 1023u) & ~1023u};
  // Told by one lane, as what follows, so that the compiler sees that no warp diverges over it.
  const int group = __shfl_sync(kFullWarp, static_cast<int>(threadIdx.x / 128), 0);
  if (threadIdx.x == 0) {
    shared.init_barriers();
    ptx::prefetch_tensor_map(&params.keys);
    ptx::prefetch_tensor_map(&params.values);
    ptx::prefetch_tensor_map(&params.queries);
  }
  __syncthreads();
  ptx::wait_for_primary();
  ptx::launch_dependents();
  if (group == Shape::kGroups) {
    ptx::lower_registers<56>();
    if (threadIdx.x % 128 < 64) feed<Shape>(params, shared, threadIdx.x % 128 < 32);
  } else {
    ptx::raise_registers<224>();
    run_rows<Shape>(params.split, shared, group);
  }
#endif
}

}  // namespace quire::cuda
