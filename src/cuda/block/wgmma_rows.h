// What a warpgroup of the wgmma tile kernel holds of its rows: which keys they see, their sums, and their softmax.
#pragma once

#include <climits>

#include "cuda/block/wgmma_loader.h"
#include "cuda/ptx/mma.h"

namespace quire::cuda {

// The named barrier that joins both warpgroups.
constexpr int kBothGroups = 1;

// The stream of a warpgroup's rows.
template <class Shape>
__device__ constexpr int stream_of(int group) {
  return Shape::kStreams == 1 ? 0 : group;
}

// By how much, in units of log 2, a product may exceed what weights are relative to.
constexpr float kMostRise = 8.0f;

// One of a thread's two rows of a segment.
struct WgmmaRow {
  KeyRange seen;                        // but for the tree's mask
  const std::uint64_t* tree = nullptr;  // the row's mask, null without
  std::int32_t words = 0;
};

// What row `at` of the segment's request sees. Not inlined, as what else few stages need: the first pass through code
// costs more than calls do.
__device__ __noinline__ inline WgmmaRow find_row(const AttentionArgs& args, const WgmmaSegment& segment,
                                                 std::int32_t at) {
  const Terms terms = split_terms(args, segment.seq);
  const std::int32_t context_len = segment.context_len;
  WgmmaRow row;
  row.seen = fold_clip(terms, segment.keys, {at, at, context_len});
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

// Running sums of a thread's rows. `largest` is what weights are relative to: a raw product, at most kMostRise below
// the largest one.
template <class Shape>
struct WgmmaState {
  float values[Shape::kBlocksV][Shape::kBlockV / 2];
  float largest[2];
  float limit[2];         // products up to this need no other `largest`
  bool has_plain_limits;  // none of the warp's is negative: they compare with products as integers do
  float sum[2][2];        // of a row, in two parts
  std::uint32_t weights[Shape::kKeys / 16][4];
  WgmmaRow rows[2];
  bool knows_rows;
};

// Where one of a thread's two rows comes from, in any segment.
struct WgmmaPlace {
  std::int32_t r = 0;  // of the segment's rows of a stream
  std::int32_t token = 0;
  std::int32_t head = 0;  // of the kv head's q_heads, or pairs of them

  // `rows_before`: the first row of the warpgroup.
  __device__ WgmmaPlace(std::int32_t group, int rows_before, int half) {
    r = rows_before + static_cast<std::int32_t>(threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4) + 8 * half;
    token = r / group;
    head = r - token * group;
  }
};

// What all stages of a segment share.
struct WgmmaCall {
  const AttentionArgs& args;
  const WgmmaSegment& segment;  // in shared memory
  const WgmmaPlace (&places)[2];
  float factor = 1.0f;  // of the products, to units of log 2
  int group = 0;        // this warpgroup
  std::int32_t begin = 0;
  KeyRange keys;
  KeyRange interior;
  bool takes_turns = false;  // both warpgroups have rows: one's softmax runs beside the other's products

  __device__ QUIRE_INLINE bool has_keys() const { return begin < keys.end; }
};

template <class Shape>
__device__ QUIRE_INLINE void clear(WgmmaState<Shape>& state) {
  state.knows_rows = false;
  state.has_plain_limits = false;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    state.largest[half] = state.limit[half] = -INFINITY;
    state.sum[half][0] = state.sum[half][1] = 0.0f;
  }
#pragma unroll
  for (int block = 0; block < Shape::kBlocksV; ++block) {
#pragma unroll
    for (float& value : state.values[block]) value = 0.0f;
  }
}

// Which keys of a stage a thread's rows see: its own pairs of each 64 as bits from bit 0 on.
template <class Shape>
struct SeenKeys {
  bool all = true;
  std::uint64_t bits[2][Shape::kKeys / 64];

  // Found before the products start: calls would make them wait for each other.
  __device__ QUIRE_INLINE SeenKeys(const WgmmaCall& call, WgmmaState<Shape>& state, std::int32_t first) {
    const WgmmaSegment& segment = call.segment;
    all = first >= call.interior.begin && first + Shape::kKeys <= call.interior.end;
    if (all) return;
    if (!state.knows_rows) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        state.rows[half] = find_row(call.args, segment, segment.first_token + call.places[half].token);
      }
      state.knows_rows = true;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int part = 0; part < Shape::kKeys / 64; ++part) {
        bits[half][part] =
            visible_keys(state.rows[half], first + 64 * part, segment.context_len) >> (threadIdx.x % 4 * 2);
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

// Raises what the weights of rows are relative to, where products are so much larger that it matters: at first, and
// then rarely. True if any of the warp's rows rises; `fade` is then what their sums so far are worth. What a row does
// depends on its products alone.
template <class Shape>
__device__ QUIRE_INLINE bool raise_largest(float factor, WgmmaState<Shape>& state,
                                           const float (&scores)[Shape::kKeys / 2], float (&fade)[2]) {
  if (state.has_plain_limits) {
    bool stays = true;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int top[2] = {INT_MIN, INT_MIN};
#pragma unroll
      for (int n = 0; n < Shape::kKeys / 8; ++n) {
        const int i = 4 * n + 2 * half;
        top[n % 2] = __vimax3_s32(top[n % 2], __float_as_int(scores[i]), __float_as_int(scores[i + 1]));
      }
      stays = stays && max(top[0], top[1]) <= __float_as_int(state.limit[half]);
    }
    if (__all_sync(kFullWarp, stays)) return false;
  }
  float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
  for (int i = 0; i < Shape::kKeys / 2; ++i) top[i % 4 / 2] = fmaxf(top[i % 4 / 2], scores[i]);
  if (__all_sync(kFullWarp, top[0] <= state.limit[0] && top[1] <= state.limit[1])) return false;
  bool is_plain = true;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    top[half] = fmaxf(top[half], __shfl_xor_sync(kFullWarp, top[half], 1));
    top[half] = fmaxf(top[half], __shfl_xor_sync(kFullWarp, top[half], 2));
    fade[half] = 1.0f;
    if (!(top[half] <= state.limit[half])) {
      fade[half] = state.largest[half] == -INFINITY ? 0.0f : ptx::exp2_fast((state.largest[half] - top[half]) * factor);
      state.largest[half] = top[half];
      state.limit[half] = top[half] + kMostRise / factor;
    }
    state.sum[half][0] *= fade[half];
    state.sum[half][1] *= fade[half];
    is_plain = is_plain && state.limit[half] >= 0.0f;
  }
  state.has_plain_limits = __all_sync(kFullWarp, is_plain);
  return true;
}

// Scores of keys [kBegin, kEnd) of the stage to weights, in place.
template <class Shape, int kBegin, int kEnd>
__device__ QUIRE_INLINE void weigh(float factor, WgmmaState<Shape>& state, float (&scores)[Shape::kKeys / 2]) {
  float base[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    base[half] = state.largest[half] == -INFINITY ? 0.0f : state.largest[half] * factor;
  }
#pragma unroll
  for (int i = kBegin / 2; i < kEnd / 2; ++i) {
    scores[i] = ptx::exp2_fast(fmaf(scores[i], factor, -base[i % 4 / 2]));
    state.sum[i % 4 / 2][i % 2] += scores[i];
  }
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

}  // namespace quire::cuda
