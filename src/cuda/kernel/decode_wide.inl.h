// The wide decode kernel: few query rows a request against a long paged 8-bit cache whose tokens hold their kv heads
// side by side.
//
// Cost: as of the decode kernel. What differs is how the memory is walked: rows of 128 bytes a kv head, read by blocks
// of their own, reach 80 % of the memory's rate, since those blocks drift apart and a page of the memory is opened for
// each. Here a block reads whole tokens (1 KB and more at a time) by bulk copies that a warp of its own issues, and
// each other warp takes one kv head of them; no results are folded inside a block.
#pragma once

#include "cuda/block/wide_loader.h"
#include "cuda/kernel/decode.inl.h"

namespace quire::cuda {

template <class Shape>
constexpr bool kInlineScales = Shape::kScaleRowBytes == 0;

// What a warp keeps of a segment's terms in registers.
struct WideTerms {
  KeyRange interior;  // keys that every row sees, none where terms change logits
  float factor[2];    // from products to logits in units of log 2, by this thread's two rows
  bool scaled;
};

// Scores of a tile that is masked, or whose logits terms change. Not inlined: few tiles come here.
template <class Shape>
static __device__ __noinline__ float4 fold_wide_terms(const DecodeCall& call, const Segment& segment,
                                                      std::int32_t first_key, float4 in) {
  float scores[1][4] = {{in.x, in.y, in.z, in.w}};
  fold_terms<Shape>(call, segment, first_key, 0, scores);
  return make_float4(scores[0][0], scores[0][1], scores[0][2], scores[0][3]);
}

// Logits of a tile of 16 keys of a warp's head: rows at `rows`, its separate scales at `scales`.
template <class Shape>
__device__ QUIRE_INLINE void score_wide(const WideTerms& terms, std::uint32_t rows, std::uint32_t scales,
                                        const DecodeState<Shape>& state, float (&scores)[1][4]) {
  float of_keys[2] = {1.0f, 1.0f};
  if constexpr (kInlineScales<Shape>) {
    load_scales<Shape>(rows + Shape::kD, Shape::kPitchK, of_keys);
  } else if (terms.scaled) {
    load_scales<Shape>(scales, Shape::kScaleRowBytes, of_keys);
  }
  score_stream<Shape, kInlineScales<Shape>>(state, rows, 0, scores);
#pragma unroll
  for (int i = 0; i < 4; ++i) scores[0][i] *= terms.factor[i % 2] * of_keys[i / 2];
}

// Adds the tile's values, weighted by `scores`.
template <class Shape>
__device__ QUIRE_INLINE void add_wide(const WideTerms& terms, std::uint32_t rows, std::uint32_t scales,
                                      const float (&scores)[1][4], DecodeState<Shape>& state) {
  using T = DecodeNumber<Shape>;
  constexpr auto kValues = static_cast<std::uint32_t>(Shape::kKeys * Shape::kPitchK);
  float shares[2] = {1.0f, 1.0f};
  if (kInlineScales<Shape> || terms.scaled) {
    if constexpr (kInlineScales<Shape>) {
      load_scales<Shape>(rows + kValues + Shape::kD, Shape::kPitchV, shares);
    } else {
      load_scales<Shape>(scales + Shape::kKeys * Shape::kScaleRowBytes, Shape::kScaleRowBytes, shares);
    }
    raise_unit(state, 0, shares);
  }
  std::uint32_t weights[1][2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    weights[0][half] =
        ptx::transpose_8x8(ptx::pack<T>(scores[0][2 * half] * shares[half], scores[0][2 * half + 1] * shares[half]));
  }
  add_values<Shape, kInlineScales<Shape>>(weights, rows + kValues, 0, state);
}

// Keeps or finishes the rows of a warp's segment: a row's elements, held by eight lanes, are dealt out to all.
template <class Shape>
__device__ QUIRE_INLINE void end_rows(const SplitParams& params, const Segment& segment, DecodeState<Shape>& state,
                                      bool scaled) {
  static_assert(Shape::kD == 128);
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int from_word = (lane - (kInlineScales<Shape> ? lane / 8 : 0)) & 3;
  const float unit = scaled ? state.unit[0] : 1.0f;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2) {
      state.sum[0][i] += __shfl_xor_sync(kFullWarp, state.sum[0][i], offset);
    }
  }
  const std::int32_t num_rows = segment.rows.num_tokens * params.shape.group;
#pragma unroll 1
  for (int pair = 0; 2 * pair < num_rows; ++pair) {
    const int from = lane / 4 * 4 + pair;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      RowState<4> rows[1];
      rows[0].largest = __shfl_sync(kFullWarp, state.largest[0][i], pair);
      rows[0].sum = __shfl_sync(kFullWarp, state.sum[0][i], pair);
#pragma unroll
      for (int word = 0; word < 4; ++word) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float value = __shfl_sync(kFullWarp, state.values[0][2 * word + e / 2][e % 2 * 2 + i], from);
          if (word == from_word) rows[0].values[e] = value * unit;
        }
      }
      if (2 * pair + i < num_rows) end_row<Shape>(params, segment, 2 * pair + i, rows);
    }
  }
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

// A warp's head over all of the block's segments. One lane tells that its warp has left a stage; racecheck, which does
// not see that the others' reads came before, is content where all do.
template <class Shape>
__device__ QUIRE_INLINE void use_tokens(const DecodeWork& work, std::int32_t worker, WideRing<Shape> ring) {
  const SplitParams& params = work.params;
  const std::uint32_t head = threadIdx.x / 32;
  DecodeState<Shape> state;
#pragma unroll 1
  for (std::int32_t unit = work.units.begin; unit < work.units.end;) {
    const Segment segment = work.segment(unit, worker);
    const DecodeCall call = decode_call<Shape>(params, segment);
    load_queries<Shape>(params.args, segment, params.shape.group, nullptr, state);
    state.reset();
    const WideTerms terms{call.terms.has_logit_terms ? KeyRange{0x7fffffff, 0} : call.terms.interior,
                          {call.factor[0] * state.lift[0][0], call.factor[0] * state.lift[0][1]},
                          call.scaled};
    const std::int32_t end = segment.keys.end;
#pragma unroll 1
    for (std::int32_t first = segment.keys.begin; first < end; first += Shape::kKeys) {
      ptx::barrier_wait(ring.full(), ring.phase);
      const std::uint32_t rows = ring.stage() + head * Shape::kRowBytes;
      const std::uint32_t scales = ring.stage() + Shape::kRowsBytes + head * 4;
      float scores[1][4] = {};
      score_wide(terms, rows, scales, state, scores);
      if (first < terms.interior.begin || first + Shape::kKeys > terms.interior.end) {
        const float4 folded = fold_wide_terms<Shape>(
            call, segment, first, make_float4(scores[0][0], scores[0][1], scores[0][2], scores[0][3]));
        scores[0][0] = folded.x, scores[0][1] = folded.y, scores[0][2] = folded.z, scores[0][3] = folded.w;
      }
      softmax_step(state, 0, scores[0]);
      add_wide(terms, rows, scales, scores, state);
      __syncwarp();
      if (threadIdx.x % 32 == 0) ptx::barrier_arrive(ring.empty());
      ring.advance();
    }
    end_rows<Shape>(params, segment, state, call.scaled);
    unit += segment.num_units;
  }
}

#endif

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    wide_decode_kernel(const __grid_constant__ SplitParams params) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) std::byte wide_shared[];
  ptx::launch_dependents();
  const AttentionArgs& args = params.args;
  prefetch_metadata(args);
  auto* records = reinterpret_cast<TileRecord*>(wide_shared + Shape::kMainBytes);
  auto* scratch = reinterpret_cast<std::int32_t*>(records + kMaxRecords);
  std::int32_t* table = scratch + 32;
  const std::uint32_t shared = ptx::shared_address(wide_shared);
  WideRing<Shape> ring{shared, shared + static_cast<std::uint32_t>(Shape::kStages * Shape::kStageBytes)};
  if (threadIdx.x == 0) {
    for (int i = 0; i < Shape::kStages; ++i, ring.advance()) {
      ptx::barrier_init(ring.full(), 1);
      ptx::barrier_init(ring.empty(), Shape::kHeads);
    }
    ring = {ring.stages, ring.barriers};
    ptx::fence_barrier_init();
  }
  build_table<Shape::kThreads>(args, params.shape, table, scratch, records, params.record);
  if (blockIdx.x == 0 && params.shape.num_entries > kMaxRecords) {
    for (std::int32_t i = static_cast<std::int32_t>(threadIdx.x); i <= params.shape.num_entries; i += Shape::kThreads) {
      params.table[i] = table[i];
    }
  }
  const std::int32_t total = table[params.shape.num_entries];
  const std::int32_t parts = args.kv.num_kv_heads / Shape::kHeads;  // blocks of a token's heads
  const std::int32_t group = static_cast<std::int32_t>(blockIdx.x) / parts;
  const std::int32_t first_head = static_cast<std::int32_t>(blockIdx.x) % parts * Shape::kHeads;
  const DecodeWork work{params,
                        table,
                        records,
                        {first_unit_of_group(group, total, params.shape.num_groups),
                         first_unit_of_group(group + 1, total, params.shape.num_groups)}};
  const std::int32_t worker = group * args.kv.num_kv_heads + first_head;
  const int warp = __shfl_sync(kFullWarp, static_cast<int>(threadIdx.x / 32), 0);
  if (warp < Shape::kHeads) {
    use_tokens<Shape>(work, worker + warp, ring);
    return;
  }
  const bool is_key_lane = threadIdx.x % 32 < Shape::kKeys;
  WideLoader<Shape> loader{params, is_key_lane ? args.kv.key[0] : args.kv.value[0], first_head, ring, work.units.begin};
#pragma unroll 1
  while (loader.issue(work, worker)) {
  }
#endif
}

}  // namespace quire::cuda
