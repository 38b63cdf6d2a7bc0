// The online softmax of one tile: from dot products to weights, and the update of each row's running maximum and sum.
//
// Cost: about 14 vector instructions for each vector of logits (scale, maximum, exp2, sum, rounding), an eighth of the
// matrix products' time at a head size of 128. The plain form folds scale and log2(e) into one product; the general
// form runs the variant's terms on every logit. A row whose keys are all masked leaves exactly its old state.
#pragma once

#include "cpu/kernel/prefetch.inl.h"
#include "variant/logit.h"

namespace quire::cpu {
namespace {

// A tile as its rows see it.
struct Tile {
  const Call* call = nullptr;
  const Chunk* chunk = nullptr;
  const Scratch* scratch = nullptr;
  const Terms* terms = nullptr;
  std::int32_t first_key = 0;  // position of lane 0
  std::int32_t begin = 0;      // keys at hand, inside the tile
  std::int32_t end = 0;
  std::int32_t stream = 0;
  bool is_masked = false;    // some row has keys to mask
  bool is_interior = false;  // every row keeps all keys at hand
  bool is_general = false;
  bool has_row_scales = false;  // of keys or values
  bool has_value_scales = false;
};

inline constexpr float kHidden = -__builtin_inff();
inline constexpr float kLowest = -3.0e38f;  // stands for -inf where a difference must not be NaN
inline constexpr std::int32_t kTileVectors = kTileKeys / Simd::kLanes;

QUIRE_INLINE Simd::M kept_lanes(const Tile& tile, const At<Number>& at) {
  const Simd::M inside = (at.kv_pos >= tile.first_key + tile.begin) & (at.kv_pos < tile.first_key + tile.end);
  if (tile.is_interior) return inside;
  return fold_keep<Number>(*tile.terms, inside, at);
}

// Stores the weights of one row, times the values' row scales where they have some.
template <class C, bool kMasked>
QUIRE_INLINE void store_weights(const Tile& tile, std::int32_t row, std::uint64_t kept, const Simd::F* p) {
  constexpr int kLanes = Simd::kLanes;
  const std::int32_t sets = tile.has_value_scales ? tile.call->weight_sets : 1;
  for (std::int32_t set = 0; set < sets; ++set) {
    float* out = tile.scratch->weights[set] + static_cast<std::int64_t>(row) * C::kWeightDwords;
    Simd::F w[kTileVectors];
    for (int v = 0; v < kTileVectors; ++v) {
      w[v] = p[v];
      if (!tile.has_value_scales) continue;
      w[v] = p[v] * Simd::load(tile.scratch->value_scales[set] + v * kLanes);
      // A masked key's scale may be anything.
      if (kMasked) w[v] = Simd::select(Simd::mask_of(kept >> (v * kLanes)), w[v], Simd::constant(0.0));
    }
    C::store(out, w, kTileVectors);
  }
}

// Where row `row` (which counts through both streams) of a tile stands, for the terms.
QUIRE_INLINE At<Number> row_at(const Tile& tile, std::int32_t row) {
  const Chunk& chunk = *tile.chunk;
  const std::int32_t place = chunk.first_row + row - tile.stream * chunk.num_rows;
  const std::int32_t token = place / tile.call->group_size;
  const std::int32_t head = chunk.kv_head * tile.call->group_size + place % tile.call->group_size;
  return {.kv_pos = Simd::iota(0),
          .q_pos = chunk.context_len + token,
          .row = token,
          .context_len = chunk.context_len,
          .q_head = head * tile.call->args->kv.num_streams + tile.stream};
}

// Turns the dot products of kRows rows into weights, side by side, since each row is one long chain of operations.
template <class C, bool kGeneral, bool kMasked, int kRows>
void softmax_block(const Tile& tile, std::int32_t row, const float* dots) {
  constexpr int kLanes = Simd::kLanes;
  const Scratch& scratch = *tile.scratch;
  Simd::F t[kRows][kTileVectors];
  Simd::F largest[kRows];
  Simd::F minus[kRows];
  Simd::F sum[kRows];
  std::uint64_t kept[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    At<Number> at = kGeneral || kMasked ? row_at(tile, row + r) : At<Number>{};
    largest[r] = Simd::constant(kHidden);
    kept[r] = kMasked ? 0 : ~0ull;
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; ++v) {
      t[r][v] =
          Simd::load(dots + r * kTileKeys + v * kLanes) * Simd::load(scratch.key_scales[tile.stream] + v * kLanes);
      if (kGeneral || kMasked) at.kv_pos = Simd::iota(tile.first_key + v * kLanes);
      if (kGeneral) t[r][v] = fold_logit<Number>(*tile.terms, t[r][v], at) * Simd::constant(Number::kLog2E);
      if (kMasked) {
        const Simd::M mine = kept_lanes(tile, at);
        kept[r] |= Simd::bits_of(mine) << (v * kLanes);
        t[r][v] = Simd::select(mine, t[r][v], Simd::constant(kHidden));
      }
      largest[r] = Simd::max(largest[r], t[r][v]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    const float before = scratch.current.largest[row + r];
    const float tile_largest = Simd::reduce_max(largest[r]);
    const float now = before > tile_largest ? before : tile_largest;
    const float base = now > kLowest ? now : (now <= kLowest ? kLowest : now);  // NaN stays
    minus[r] = Simd::broadcast(&base);
    sum[r] = Simd::constant(0.0);
    scratch.tile_largest[row + r] = now;
    scratch.kept[row + r] = kept[r];
  }
#pragma GCC unroll 4
  for (int v = 0; v < kTileVectors; ++v) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      t[r][v] = Number::exp2(t[r][v] - minus[r]);
      sum[r] = sum[r] + t[r][v];
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    scratch.tile_sum[row + r] = Simd::reduce_add(sum[r]);
    store_weights<C, kMasked>(tile, row + r, kept[r], t[r]);
  }
}

template <class C, bool kGeneral, bool kMasked>
void softmax_row(const Tile& tile, std::int32_t row, const float* dots) {
  softmax_block<C, kGeneral, kMasked, 1>(tile, row, dots);
}

// Serves `lines` lines a row.
template <class C>
QUIRE_INLINE void softmax_rows(const Tile& tile, std::int32_t first, std::int32_t count,
                               PrefetchQueue* prefetch = nullptr, std::int32_t lines = 0) {
  for (std::int32_t i = 0; i < count; ++i) {
    const float* dots = tile.scratch->logits + i * kTileKeys;
    serve_prefetch(prefetch, lines);
    if (!tile.is_general && !tile.is_masked && i + 2 <= count) {
      softmax_block<C, false, false, 2>(tile, first + i, dots);
      serve_prefetch(prefetch, lines);
      ++i;
    } else if (tile.is_general) {
      if (tile.is_masked) {
        softmax_row<C, true, true>(tile, first + i, dots);
      } else {
        softmax_row<C, true, false>(tile, first + i, dots);
      }
    } else if (tile.is_masked) {
      softmax_row<C, false, true>(tile, first + i, dots);
    } else {
      softmax_row<C, false, false>(tile, first + i, dots);
    }
  }
}

// Joins the tile's maxima and sums to the rows' states and leaves in `rescale` what the old values must be multiplied
// by.
inline void update_states(const Scratch& scratch, std::int32_t rows) {
  const RowState& state = scratch.current;
  for (std::int32_t row = 0; row < rows; row += Simd::kLanes) {
    const Simd::F now = Simd::load(scratch.tile_largest + row);
    const Simd::F base = Simd::select(Simd::less(now, Simd::constant(kLowest)), Simd::constant(kLowest), now);
    const Simd::F factor = Number::exp2(Simd::load(state.largest + row) - base);
    Simd::store(scratch.rescale + row, factor);
    Simd::store(state.largest + row, now);
    Simd::store(state.sum + row, Simd::fma(Simd::load(state.sum + row), factor, Simd::load(scratch.tile_sum + row)));
  }
}

}  // namespace
}  // namespace quire::cpu
