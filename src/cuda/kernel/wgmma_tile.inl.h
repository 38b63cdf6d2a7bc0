// The tile kernel on wgmma: many query rows a request (prompts and large trees), on Hopper, from 16-bit paged caches.
//
// Cost: 4 * head_size flops a row and visible key in m64n128k16 products; K and V of a row tile are read once for the
// 128 rows of all q_heads of a kv head. Bound by the tensor cores: one warp keeps the copy engine busy with whole pages
// straight into the swizzled form that wgmma reads; two warpgroups of 64 rows each hold scores, weights and sums in
// registers. The products of the next keys and of the last weights run while the softmax of the keys between them is
// computed.
#pragma once

#include "core/macros.h"
#include "cuda/block/finish.h"
#include "cuda/block/tile_terms.h"
#include "cuda/block/wgmma_loader.h"
#include "cuda/ptx/dependent.h"
#include "cuda/ptx/mma.h"
#include "cuda/ptx/wgmma.h"

namespace quire::cuda {

// Named barriers: 1 joins both warpgroups, 2 and 3 are each one's own, 4 and 5 each one's turn to start products.
constexpr int kBothGroups = 1;
constexpr int kOneGroup = 2;
constexpr int kTurn = 4;

// One of a thread's two rows of a segment.
struct WgmmaRow {
  KeyRange seen;                        // but for the tree's mask
  const std::uint64_t* tree = nullptr;  // the row's mask, null without
  std::int32_t words = 0;
};

// What row `at` of a request sees of `keys`. Not inlined, as what else runs once a segment or less: the first pass
// through code costs more than calls do.
__device__ __noinline__ inline WgmmaRow find_row(const AttentionArgs& args, std::int32_t seq, KeyRange keys,
                                                 std::int32_t context_len, std::int32_t at) {
  const Terms terms = terms_of(args.variant, seq);
  WgmmaRow row;
  row.seen = fold_clip(terms, keys, {at, at, context_len});
  if (!terms.tree.active()) return row;
  if (at < terms.tree.size) {
    row.words = terms.tree.words();
    row.tree = terms.tree.mask + static_cast<std::int64_t>(at) * row.words;
    row.seen.end = min(row.seen.end, context_len + terms.tree.size);
  } else {
    row.seen.end = min(row.seen.end, context_len + at + 1);
  }
  return row;
}

// Which of the 64 keys from `first` on a row sees, as bits: the context is seen, what lies behind a mask is not.
__device__ __noinline__ inline std::uint64_t visible_keys(WgmmaRow row, std::int32_t first, std::int32_t context_len) {
  const auto below = [](std::int32_t n) {
    return n <= 0 ? std::uint64_t{0} : n >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1;
  };
  const std::uint64_t bits = below(row.seen.end - first) & ~below(row.seen.begin - first);
  if (row.tree == nullptr) return bits;
  const std::int32_t node = first - context_len;
  const auto word = [&](std::int32_t i) { return i < 0 ? ~std::uint64_t{0} : i < row.words ? row.tree[i] : 0; };
  const std::int32_t i = node >> 6;
  const int shift = node & 63;
  return bits & (shift == 0 ? word(i) : word(i) >> shift | word(i + 1) << (64 - shift));
}

// Running sums of a thread's rows; `largest` is a raw product.
template <class Shape>
struct WgmmaState {
  float values[Shape::kBlocksV][Shape::kBlockV / 2];
  float largest[2];
  float sum[2];
  std::uint32_t weights[Shape::kKeys / 16][4];
  WgmmaRow rows[2];
};

// What all stages of a segment share.
struct WgmmaCall {
  KeyRange keys;      // that may be seen
  KeyRange interior;  // that every row sees
  std::int32_t context_len = 0;
  float factor = 1.0f;       // of the products, to units of log 2
  int group = 0;             // this warpgroup
  bool takes_turns = false;  // both warpgroups have rows: one's softmax runs beside the other's products
};

// Where one of a thread's two rows comes from.
struct WgmmaPlace {
  std::int32_t r = 0;  // of the segment
  bool valid = false;
  std::int32_t at = 0;  // token inside the request
  std::int32_t q_head = 0;
};

__device__ QUIRE_INLINE WgmmaPlace row_place(const SplitParams& params, const Segment& segment, int group, int half) {
  WgmmaPlace place;
  place.r = group * 64 + static_cast<std::int32_t>(threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4) + 8 * half;
  place.valid = place.r < segment.rows.num_tokens * params.shape.group;
  const std::int32_t r = place.valid ? place.r : 0;
  place.at = segment.rows.first_token + r / params.shape.group;
  place.q_head = segment.kv_head * params.shape.group + r % params.shape.group;
  return place;
}

// This warpgroup's rows of the segment, and what they see.
template <class Shape>
__device__ QUIRE_INLINE WgmmaCall open_segment(const SplitParams& params, const Segment& segment, int group,
                                               WgmmaState<Shape>& state) {
  const AttentionArgs& args = params.args;
  WgmmaCall call;
  call.keys = {segment.rows.keys.begin, segment.keys.end};
  call.context_len = segment.rows.lengths.context_len();
  const std::int32_t last_row = segment.rows.first_token + segment.rows.num_tokens - 1;
  call.interior = fold_interior(terms_of(args.variant, segment.rows.seq), call.keys,
                                {segment.rows.first_token, last_row, call.context_len});
  call.factor = args.variant.scale * args.query_scale * args.kv.key[0].tensor_scale * kLog2E;
  call.group = group;
  call.takes_turns = segment.rows.num_tokens * params.shape.group > 64;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const std::int32_t at = row_place(params, segment, group, half).at;
    state.rows[half] = find_row(args, segment.rows.seq, call.keys, call.context_len, at);
    state.largest[half] = -INFINITY;
    state.sum[half] = 0.0f;
  }
#pragma unroll
  for (int block = 0; block < Shape::kBlocksV; ++block) {
#pragma unroll
    for (float& value : state.values[block]) value = 0.0f;
  }
  return call;
}

// Starts the copies of the warpgroup's 64 rows of queries into shared memory; rows that are not there become zero.
template <class Shape>
__device__ QUIRE_INLINE void start_queries(const SplitParams& params, const Segment& segment, int group,
                                           std::uint32_t to) {
  const AttentionArgs& args = params.args;
  // Two threads a row, so that each looks for one row only.
  const auto thread = static_cast<std::int32_t>(threadIdx.x % 128);
  const std::int32_t r = group * 64 + thread / 2;
  const bool valid = r < segment.rows.num_tokens * params.shape.group;
  const std::int32_t at = valid ? r / params.shape.group : 0;
  const std::int64_t token = segment.rows.lengths.query_start + segment.rows.first_token + at;
  const std::int32_t q_head = segment.kv_head * params.shape.group + (valid ? r - at * params.shape.group : 0);
  const auto* from =
      static_cast<const std::uint16_t*>(args.query) + token * args.query_token_stride + q_head * args.query_head_stride;
#pragma unroll
  for (int i = 0; i < Shape::kD / 16; ++i) {
    const int chunk = 2 * i + thread % 2;
    ptx::cp_async_16(
        to + static_cast<std::uint32_t>(chunk / 8 * Shape::kRows * 128 + thread / 2 * 128 + ((chunk ^ r) % 8) * 16),
        from + chunk * 8, valid);
  }
  ptx::cp_async_commit();
}

// Waits until the warpgroup's queries are there.
__device__ QUIRE_INLINE void finish_queries(int group) {
  ptx::cp_async_wait<0>();
  ptx::fence_async_proxy();
  ptx::named_barrier_sync(kOneGroup + group, 128);
}

// Starts scores = Q * K^T.
template <class Shape>
__device__ QUIRE_INLINE void multiply_keys(std::uint32_t queries, std::uint32_t keys,
                                           float (&scores)[Shape::kKeys / 2]) {
#pragma unroll
  for (int step = 0; step < Shape::kD / 16; ++step) {
    const auto inside = static_cast<std::uint32_t>(step % 4 * 32);
    const std::uint32_t q = queries + static_cast<std::uint32_t>(step / 4 * Shape::kRows * 128) + inside;
    const std::uint32_t k = keys + static_cast<std::uint32_t>(step / 4 * 1024) + inside;
    ptx::wgmma_shared<typename Shape::T>(scores, ptx::matrix_descriptor(q, 1024),
                                         ptx::matrix_descriptor(k, Shape::kColumnsK * 1024), step > 0);
  }
}

// Starts values += weights * V.
template <class Shape>
__device__ QUIRE_INLINE void multiply_values(std::uint32_t values, WgmmaState<Shape>& state) {
  constexpr std::uint32_t kRows = Shape::kColumnsV * 1024;
#pragma unroll
  for (int step = 0; step < Shape::kKeys / 16; ++step) {
#pragma unroll
    for (int block = 0; block < Shape::kBlocksV; ++block) {
      const std::uint32_t at = values + static_cast<std::uint32_t>(step) * 2 * kRows +
                               static_cast<std::uint32_t>(block * (Shape::kBlockV / 64) * 1024);
      ptx::wgmma_registers<typename Shape::T>(state.values[block], state.weights[step],
                                              ptx::matrix_descriptor(at, kRows, 1024), true);
    }
  }
}

// Which keys of a stage a thread's rows see: its own pairs of each 64 as bits from bit 0 on.
template <class Shape>
struct SeenKeys {
  bool all = true;
  std::uint64_t bits[2][Shape::kKeys / 64];

  // Found before the products start: calls would make them wait for each other.
  __device__ QUIRE_INLINE SeenKeys(const WgmmaCall& call, const WgmmaState<Shape>& state, std::int32_t first) {
    all = first >= call.interior.begin && first + Shape::kKeys <= call.interior.end;
    if (all) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int part = 0; part < Shape::kKeys / 64; ++part) {
        bits[half][part] = visible_keys(state.rows[half], first + 64 * part, call.context_len) >> (threadIdx.x % 4 * 2);
      }
    }
  }

  // Products of other keys to -inf.
  __device__ QUIRE_INLINE void hide_others(float (&scores)[Shape::kKeys / 2]) const {
    if (all) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int part = 0; part < Shape::kKeys / 64; ++part) {
        const std::uint32_t words[2] = {static_cast<std::uint32_t>(bits[half][part]),
                                        static_cast<std::uint32_t>(bits[half][part] >> 32)};
#pragma unroll
        for (int n = 0; n < 8; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            if ((words[n / 4] >> (n % 4 * 8 + i) & 1u) == 0) scores[32 * part + 4 * n + 2 * half + i] = -INFINITY;
          }
        }
      }
    }
  }
};

// Scores to weights, in place; `fade` is what the sums so far are worth relative to the new maximum. True if it moved.
template <class Shape>
__device__ QUIRE_INLINE bool soften(float factor, WgmmaState<Shape>& state, float (&scores)[Shape::kKeys / 2],
                                    float (&fade)[2]) {
  bool moved = false;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float top = -INFINITY;
#pragma unroll
    for (int n = 0; n < Shape::kKeys / 8; ++n) {
      top = fmaxf(top, fmaxf(scores[4 * n + 2 * half], scores[4 * n + 2 * half + 1]));
    }
    top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 1));
    top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 2));
    const float raised = fmaxf(state.largest[half], top);
    const float base = raised == -INFINITY ? 0.0f : raised * factor;
    fade[half] = ptx::exp2_fast(state.largest[half] * factor - base);
    moved |= raised != state.largest[half];
    state.largest[half] = raised;
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < Shape::kKeys / 8; ++n) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        scores[4 * n + i] = ptx::exp2_fast(fmaf(scores[4 * n + i], factor, -base));
        sum += scores[4 * n + i];
      }
    }
    state.sum[half] = state.sum[half] * fade[half] + sum;
  }
  return __any_sync(kFullWarp, moved);
}

template <class Shape>
__device__ QUIRE_INLINE void fade_values(WgmmaState<Shape>& state, const float (&fade)[2]) {
#pragma unroll
  for (int block = 0; block < Shape::kBlocksV; ++block) {
#pragma unroll
    for (int i = 0; i < Shape::kBlockV / 2; ++i) state.values[block][i] *= fade[i % 4 / 2];
  }
}

template <class Shape>
__device__ QUIRE_INLINE void pack_weights(const float (&scores)[Shape::kKeys / 2], WgmmaState<Shape>& state) {
#pragma unroll
  for (int step = 0; step < Shape::kKeys / 16; ++step) {
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      const int i = 8 * step + word / 2 * 4 + word % 2 * 2;
      state.weights[step][word] = ptx::pack<typename Shape::T>(scores[i], scores[i + 1]);
    }
  }
}

// Rows of values outside of `keys` were not loaded, or hold what nobody wrote: zeros in their place, so that weights of
// zero hide them. Both warpgroups come here.
template <class Shape>
__device__ QUIRE_INLINE void clear_values(KeyRange keys, std::int32_t first, std::uint32_t values) {
  if (first >= keys.begin && first + Shape::kKeys <= keys.end) return;
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

// All stages of a segment, but for the products with the last values.
template <class Shape>
__device__ QUIRE_INLINE void run_stages(const WgmmaCall& call, const Segment& segment, WgmmaShared<Shape> shared,
                                        std::uint32_t queries, RingPlace<Shape>& place, WgmmaState<Shape>& state) {
  float scores[Shape::kKeys / 2];
  float fade[2];
  std::int32_t first = segment.keys.begin;
  const SeenKeys<Shape> seen_first(call, state, first);
  ptx::barrier_wait(shared.full_keys(place.stage), place.parity);
  ptx::wgmma_fence();
  multiply_keys<Shape>(queries, shared.keys(place.stage), scores);
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
  ptx::pin(scores);
  release(shared.empty_keys(place.stage));
  seen_first.hide_others(scores);
  soften(call.factor, state, scores, fade);
  pack_weights(scores, state);
#pragma unroll 1
  for (first += Shape::kKeys; first < segment.keys.end; first += Shape::kKeys) {
    const SeenKeys<Shape> seen(call, state, first);
    const RingPlace<Shape> last = place;
    place.advance();
    ptx::barrier_wait(shared.full_keys(place.stage), place.parity);
    ptx::barrier_wait(shared.full_values(last.stage), last.parity);
    clear_values<Shape>(call.keys, first - Shape::kKeys, shared.values(last.stage));
    if (call.takes_turns) ptx::named_barrier_sync(kTurn + call.group, 128 * Shape::kGroups);
    ptx::wgmma_fence();
    multiply_keys<Shape>(queries, shared.keys(place.stage), scores);
    ptx::wgmma_commit();
    ptx::wgmma_fence();
    multiply_values(shared.values(last.stage), state);
    ptx::wgmma_commit();
    if (call.takes_turns) ptx::named_barrier_arrive(kTurn + 1 - call.group, 128 * Shape::kGroups);
    ptx::wgmma_wait<1>();
    ptx::pin(scores);
    release(shared.empty_keys(place.stage));
    seen.hide_others(scores);
    const bool moved = soften(call.factor, state, scores, fade);
    // Sums are never negative; the branch keeps the compiler from waiting for the products before the softmax.
    if (state.sum[0] + state.sum[1] < 0.0f) __nanosleep(0);
    ptx::wgmma_wait<0>();
#pragma unroll
    for (auto& block : state.values) ptx::pin(block);
    release(shared.empty_values(last.stage));
    if (moved) fade_values(state, fade);
    pack_weights(scores, state);
  }
}

// The products with the last values.
template <class Shape>
__device__ QUIRE_INLINE void finish_stages(const WgmmaCall& call, const Segment& segment, WgmmaShared<Shape> shared,
                                           RingPlace<Shape>& place, WgmmaState<Shape>& state) {
  const std::int32_t last =
      segment.keys.begin + (segment.keys.end - 1 - segment.keys.begin) / Shape::kKeys * Shape::kKeys;
  ptx::barrier_wait(shared.full_values(place.stage), place.parity);
  clear_values<Shape>(call.keys, last, shared.values(place.stage));
  ptx::wgmma_fence();
  multiply_values(shared.values(place.stage), state);
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
#pragma unroll
  for (auto& block : state.values) ptx::pin(block);
  release(shared.empty_values(place.stage));
  place.advance();
}

// The stages of a segment for a warpgroup without rows.
template <class Shape>
__device__ QUIRE_INLINE void skip_stages(const WgmmaCall& call, const Segment& segment, WgmmaShared<Shape> shared,
                                         RingPlace<Shape>& place) {
  for (std::int32_t first = segment.keys.begin; first < segment.keys.end; first += Shape::kKeys) {
    ptx::barrier_wait(shared.full_keys(place.stage), place.parity);
    release(shared.empty_keys(place.stage));
    ptx::barrier_wait(shared.full_values(place.stage), place.parity);
    clear_values<Shape>(call.keys, first, shared.values(place.stage));
    release(shared.empty_values(place.stage));
    place.advance();
  }
}

// A thread's part of its rows to the output, or to the segment's slot.
template <class Shape>
__device__ QUIRE_INLINE void store_rows(const SplitParams& params, const Segment& segment, int group, float factor,
                                        WgmmaState<Shape>& state) {
  const AttentionArgs& args = params.args;
  const auto lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const WgmmaPlace row = row_place(params, segment, group, half);
    float sum = state.sum[half];
    sum += __shfl_xor_sync(kFullWarp, sum, 1);
    sum += __shfl_xor_sync(kFullWarp, sum, 2);
    float largest = state.largest[half] == -INFINITY ? -INFINITY : state.largest[half] * factor;
    if (!row.valid) continue;
    if (segment.slot >= 0) {
      const std::int64_t to = static_cast<std::int64_t>(segment.slot) * params.slot_rows + row.r;
      if (lane % 4 == 0) params.partial_states[to] = make_float2(largest, sum);
      float* values = params.partial_rows + to * Shape::kDv + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < Shape::kDv / 8; ++n) {
        const float* pair = &state.values[8 * n / Shape::kBlockV][8 * n % Shape::kBlockV / 2 + 2 * half];
        *reinterpret_cast<float2*>(values + 8 * n) = make_float2(pair[0], pair[1]);
      }
      continue;
    }
    const std::int64_t token = segment.rows.lengths.query_start + row.at;
    float fade = 1.0f;
    if (args.variant.sinks != nullptr) join_sink(args.variant.sinks[row.q_head], largest, sum, fade);
    const float norm = sum == 0.0f ? 0.0f : fade / sum * args.kv.value[0].tensor_scale;
    if (args.lse != nullptr && lane % 4 == 0) {
      args.lse[row.q_head * args.lse_head_stride + token] = sum == 0.0f ? -INFINITY : (largest + log2f(sum)) * kLn2;
    }
    const std::int64_t to = token * params.target.token_stride + row.q_head * params.target.head_stride + lane % 4 * 2;
    const bool is_wide = params.target.dtype == DType::kFloat32;
#pragma unroll
    for (int n = 0; n < Shape::kDv / 8; ++n) {
      const float* pair = &state.values[8 * n / Shape::kBlockV][8 * n % Shape::kBlockV / 2 + 2 * half];
      const float2 result = make_float2(pair[0] * norm, pair[1] * norm);
      if (is_wide) {
        *reinterpret_cast<float2*>(static_cast<float*>(params.target.data) + to + 8 * n) = result;
      } else {
        *reinterpret_cast<std::uint32_t*>(static_cast<std::uint16_t*>(params.target.data) + to + 8 * n) =
            ptx::pack<typename Shape::T>(result.x, result.y);
      }
    }
  }
}

template <class Shape>
__device__ QUIRE_INLINE void run_rows(const WgmmaWork& work, WgmmaShared<Shape> shared, int group) {
  const SplitParams& params = work.params;
  RingPlace<Shape> place;
  WgmmaState<Shape> state;
  const std::uint32_t queries = shared.queries() + static_cast<std::uint32_t>(group * 64 * 128);
  if (group == 1) ptx::named_barrier_arrive(kTurn, 128 * Shape::kGroups);
  Segment segment;
  Segment next;
  std::int32_t unit = work.units.begin;
  // Finds the next segment and starts to load its queries.
  const auto look_ahead = [&] {
    if (unit >= work.units.end) return;
    next = work.segment(unit);
    if (group * 64 < next.rows.num_tokens * params.shape.group) start_queries<Shape>(params, next, group, queries);
  };
  look_ahead();
  while (unit < work.units.end) {
    segment = next;
    unit += segment.num_units;
    const WgmmaCall call = open_segment(params, segment, group, state);
    const bool has_rows = group * 64 < segment.rows.num_tokens * params.shape.group;
    const bool has_keys = segment.keys.begin < segment.keys.end;
    if (has_rows) {
      finish_queries(group);
      if (has_keys) run_stages(call, segment, shared, queries, place, state);
      ptx::named_barrier_sync(kOneGroup + group, 128);  // all of the warpgroup's warps have read their queries
    } else {
      skip_stages<Shape>(call, segment, shared, place);
    }
    look_ahead();
    if (has_rows && has_keys) finish_stages(call, segment, shared, place, state);
    if (has_rows) store_rows<Shape>(params, segment, group, call.factor, state);
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
  }
  __syncthreads();
  ptx::wait_for_primary();
  ptx::launch_dependents();
  const WgmmaWork work = WgmmaWork::find(params);
  if (group == Shape::kGroups) {
    ptx::lower_registers<40>();
    if (threadIdx.x % 128 < 32) feed<Shape>(params, work, shared);
  } else {
    ptx::raise_registers<232>();
    run_rows<Shape>(work, shared, group);
  }
#endif
}

}  // namespace quire::cuda
