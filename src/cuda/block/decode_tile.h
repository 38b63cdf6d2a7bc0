// One warp's arithmetic on 16 keys in the decode kernel: scores, weights and sums of values.
//
// Products are turned around: keys (and dimensions of values) are the 16 rows of a matrix product, query rows its 8
// columns, so that the few rows of a decode step fill half a product instead of a quarter, and a loaded or widened
// fragment of the cache serves every row tile. Weights change sides by a transposition in registers.
#pragma once

#include <type_traits>

#include "cuda/block/decode_loader.h"
#include "cuda/block/tile_terms.h"
#include "cuda/ptx/convert.h"
#include "cuda/ptx/mma.h"

namespace quire::cuda {

template <class Shape>
using DecodeNumber = std::conditional_t<Shape::kKV == DType::kBFloat16, __nv_bfloat16, __half>;

// A row of a stream.
struct DecodeRow {
  std::int32_t q_head = 0;
  std::int32_t row = 0;  // token inside the request
};

// Fragments and running softmax of a warp.
template <class Shape>
struct DecodeState {
  std::uint32_t query[Shape::kSharedQuery ? 1 : Shape::kTiles][Shape::kD / 16][2];
  std::uint32_t shared_query = 0;  // [kTiles, kD / 16, 32 lanes, 2 words] where there are too many
  float values[Shape::kTiles][Shape::kDv / 16][4];
  float largest[Shape::kTiles][2];
  float sum[Shape::kTiles][2];   // of this thread's keys
  float lift[Shape::kTiles][2];  // what queries were divided by, for 8-bit caches
  float unit[Shape::kStreams];   // the largest row scale of values so far; weights are relative to it
  float inverse_unit[Shape::kStreams];

  __device__ void reset() {
#pragma unroll
    for (int tile = 0; tile < Shape::kTiles; ++tile) {
#pragma unroll
      for (int j = 0; j < Shape::kDv / 16; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) values[tile][j][i] = 0.0f;
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        largest[tile][i] = -INFINITY;
        sum[tile][i] = 0.0f;
      }
    }
#pragma unroll
    for (int stream = 0; stream < Shape::kStreams; ++stream) unit[stream] = inverse_unit[stream] = 0.0f;
  }
};

// The key (0 .. 7, and 8 more) of row m of a product. 8-bit rows are taken in an order in which the wide loads of keys
// and of values both fall into different banks.
template <class Shape>
__device__ QUIRE_INLINE int key_of(int m) {
  if constexpr (Shape::kBytes == 2 || Shape::kReads != RowReads::kSpread) return m;
  return (m & 4) | ((m % 2 * 2 + m / 2 % 2) ^ (m >> 2 << 1));
}

// The dimension of the first element of word `word` of query fragments: 8-bit keys are read eight, sixteen or (words)
// four dimensions a lane.
template <class Shape>
__device__ QUIRE_INLINE int query_dim(int step, int word, int lane) {
  if constexpr (Shape::kBytes == 2) return 16 * step + 2 * (lane % 4) + 8 * word;
  if constexpr (Shape::kReads == RowReads::kWords) return 16 * step + 4 * (lane % 4) + 2 * word;
  if constexpr (Shape::kReads == RowReads::kChunks) return lane % 4 * (Shape::kD / 4) + 4 * step + 2 * word;
  return 32 * (step / 2) + 8 * (lane % 4) + 4 * (step % 2) + 2 * word;
}

// By how many words a lane's loads of values with inline scales are turned, so that lanes use different banks.
template <class Shape>
__device__ QUIRE_INLINE int word_turn() {
  return Shape::kDvPart % 128 == 0 ? static_cast<int>(threadIdx.x % 32 / 8) : 0;
}

// The dimension of element `i` of value fragment j.
template <class Shape>
__device__ QUIRE_INLINE int value_dim(int j, int i, int turn) {
  const int column = static_cast<int>(threadIdx.x % 32 / 4);
  if constexpr (Shape::kBytes == 2) return 16 * j + column + 8 * (i / 2);
  constexpr int kFragments = Shape::kDvPart / 16;
  const int word = j % kFragments / 2;
  const int place = Shape::kDvPart % 128 == 0 ? word / 4 * 4 + (word + turn) % 4 : word;
  return j / kFragments * Shape::kDvPart + column * (Shape::kDvPart / 8) + place * 4 + j % 2 * 2 + i / 2;
}

__device__ QUIRE_INLINE DecodeRow decode_row(const Segment& segment, std::int32_t group, std::int32_t r,
                                             std::int32_t streams, std::int32_t stream) {
  const bool valid = r < segment.rows.num_tokens * group;
  return {(segment.kv_head * group + (valid ? r % group : 0)) * streams + stream,
          segment.rows.first_token + (valid ? r / group : 0)};
}

// Two elements of a query row of at most 16 bits each that is not made of aligned words; 8-bit ones become float16. Not
// inlined: it is rare.
__device__ __noinline__ inline std::uint32_t odd_query_word(const void* query, DType dtype, std::int64_t at) {
  if (dtype_bytes(dtype) == 2) {
    const auto* row = static_cast<const std::uint16_t*>(query) + at;
    return row[0] | static_cast<std::uint32_t>(row[1]) << 16;
  }
  return ptx::pack<__half>(load_as_float(query, dtype, at), load_as_float(query, dtype, at + 1));
}

// The two 16-bit floats of a word.
__device__ QUIRE_INLINE float2 widen_query(std::uint32_t word, bool is_bf16) {
  if (is_bf16) return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
  return __half22float2(ptx::bits_half2(word));
}

// A row's fragments for an 8-bit cache: float16, divided by a power of two that brings the largest element near 1, so
// that any dtype fits. Returns that power.
template <class Shape>
__device__ QUIRE_INLINE float lift_query(const AttentionArgs& args, std::int64_t base, bool valid,
                                         std::uint32_t (&query)[Shape::kD / 16][2]) {
  constexpr int kSteps = Shape::kD / 16;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const auto* row = static_cast<const std::uint16_t*>(args.query) + base;
  const bool is_bf16 = args.query_dtype == DType::kBFloat16;
  const bool in_words = dtype_bytes(args.query_dtype) == 2 && reinterpret_cast<std::uintptr_t>(row) % 4 == 0;
  float2 pairs[kSteps][2];
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int word = 0; word < 2; ++word) {
      const int d = query_dim<Shape>(step, word, lane);
      query[step][word] = !valid     ? 0u
                          : in_words ? *reinterpret_cast<const std::uint32_t*>(row + d)
                                     : odd_query_word(args.query, args.query_dtype, base + d);
    }
  }
  float magnitude = 0.0f;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int word = 0; word < 2; ++word) {
      float2& pair = pairs[step][word];
      pair = widen_query(query[step][word], is_bf16);
      magnitude = fmaxf(magnitude, fmaxf(fabsf(pair.x), fabsf(pair.y)));
    }
  }
  magnitude = fmaxf(magnitude, __shfl_xor_sync(kFullWarp, magnitude, 1));
  magnitude = fmaxf(magnitude, __shfl_xor_sync(kFullWarp, magnitude, 2));
  const float lift = magnitude > 0.0f && magnitude < INFINITY ? exp2f(static_cast<float>(ilogbf(magnitude))) : 1.0f;
  const float inverse = 1.0f / lift;  // exact
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int word = 0; word < 2; ++word) {
      query[step][word] = ptx::pack<DecodeNumber<Shape>>(pairs[step][word].x * inverse, pairs[step][word].y * inverse);
    }
  }
  return lift;
}

// The fragments of a row tile's queries, zero for rows that are not there; returns what lane / 4's row was divided by.
template <class Shape>
__device__ QUIRE_INLINE float load_query_tile(const AttentionArgs& args, const Segment& segment, std::int32_t group,
                                              int tile, std::uint32_t (&query)[Shape::kD / 16][2]) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int first = tile % Shape::kRowTiles * 8;
  const bool valid = first + lane / 4 < segment.rows.num_tokens * group;
  const DecodeRow at = decode_row(segment, group, first + lane / 4, Shape::kStreams, tile / Shape::kRowTiles);
  const std::int64_t base =
      (segment.rows.lengths.query_start + at.row) * args.query_token_stride + at.q_head * args.query_head_stride;
  if constexpr (Shape::kBytes == 1) return lift_query<Shape>(args, base, valid, query);
  const auto* row = static_cast<const std::uint16_t*>(args.query) + base;
#pragma unroll
  for (int step = 0; step < Shape::kD / 16; ++step) {
#pragma unroll
    for (int word = 0; word < 2; ++word) {
      const int d = query_dim<Shape>(step, word, lane);
      query[step][word] = valid ? *reinterpret_cast<const std::uint32_t*>(row + d) : 0u;
    }
  }
  return 1.0f;
}

// Loads the queries of the segment's rows, to registers or (by all warps of the block) to `shared`.
template <class Shape>
__device__ QUIRE_INLINE void load_queries(const AttentionArgs& args, const Segment& segment, std::int32_t group,
                                          std::byte* shared, DecodeState<Shape>& state) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  if constexpr (Shape::kSharedQuery) {
    auto* fragments = reinterpret_cast<uint2*>(shared);
    auto* lifts = reinterpret_cast<float*>(shared + Shape::kQueryBytes);
    const int warp = static_cast<int>(threadIdx.x / 32);
    static_assert(Shape::kTiles == Shape::kWarps);
    const float lift = load_query_tile<Shape>(args, segment, group, warp, state.query[0]);
#pragma unroll
    for (int step = 0; step < Shape::kD / 16; ++step) {
      fragments[(warp * (Shape::kD / 16) + step) * 32 + lane] =
          make_uint2(state.query[0][step][0], state.query[0][step][1]);
    }
    if (lane % 4 == 0) lifts[warp * 8 + lane / 4] = lift;
    __syncthreads();
    state.shared_query = ptx::shared_address(shared) + static_cast<std::uint32_t>(lane * 8);
#pragma unroll
    for (int tile = 0; tile < Shape::kTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 2; ++i) state.lift[tile][i] = lifts[tile * 8 + lane % 4 * 2 + i];
    }
  } else {
#pragma unroll
    for (int tile = 0; tile < Shape::kTiles; ++tile) {
      const float lift = load_query_tile<Shape>(args, segment, group, tile, state.query[tile]);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        state.lift[tile][i] = Shape::kBytes == 1 ? __shfl_sync(kFullWarp, lift, (lane % 4 * 2 + i) * 4) : 1.0f;
      }
    }
  }
}

// kWords words from an address that is aligned to all of them, or to one where kInline; four then begin with word
// `turn`.
template <bool kInline, int kWords>
__device__ QUIRE_INLINE void load_words(std::uint32_t (&words)[kWords], std::uint32_t from, int turn = 0) {
  if constexpr (kInline) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      std::uint32_t word[1];
      ptx::load_shared(word, from + static_cast<std::uint32_t>(4 * (kWords == 4 ? (i + turn) % 4 : i)));
      words[i] = word[0];
    }
  } else {
    ptx::load_shared(words, from);
  }
}

// scores[tile] += keys of a stream's tile times its queries; element 2 * h + i is key key_of(lane / 4) + 8 * h, row i.
template <class Shape, bool kInline>
__device__ QUIRE_INLINE void score_stream(const DecodeState<Shape>& state, std::uint32_t keys, int stream,
                                          float (&scores)[Shape::kTiles][4]) {
  using T = DecodeNumber<Shape>;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const auto multiply = [&](int step, const std::uint32_t(&k)[4]) {
#pragma unroll
    for (int tile = stream * Shape::kRowTiles; tile < (stream + 1) * Shape::kRowTiles; ++tile) {
      if constexpr (Shape::kSharedQuery) {
        std::uint32_t query[2];
        ptx::load_shared(query,
                         state.shared_query + static_cast<std::uint32_t>((tile * (Shape::kD / 16) + step) * 256));
        ptx::mma_16816<T>(scores[tile], k, query[0], query[1]);
      } else {
        ptx::mma_16816<T>(scores[tile], k, state.query[tile][step][0], state.query[tile][step][1]);
      }
    }
  };
  if constexpr (Shape::kBytes == 2) {
    const std::uint32_t row = keys + static_cast<std::uint32_t>((lane / 8 % 2 * 8 + lane % 8) * Shape::kPitchK);
    const int turn = Shape::is_swizzled(Shape::kD) ? lane % 8 : 0;
#pragma unroll
    for (int step = 0; step < Shape::kD / 16; ++step) {
      std::uint32_t k[4];
      ptx::ldmatrix_x4(k, row + static_cast<std::uint32_t>(((2 * step + lane / 16) ^ turn) * 16));
      multiply(step, k);
    }
  } else if constexpr (Shape::kReads != RowReads::kSpread) {
    constexpr bool kChunks = Shape::kReads == RowReads::kChunks;
    constexpr int kWords = kChunks ? 4 : 1;
    const std::uint32_t row =
        keys + static_cast<std::uint32_t>(lane / 4 * Shape::kPitchK + lane % 4 * (kChunks ? Shape::kD / 4 : 4));
#pragma unroll
    for (int first = 0; first < Shape::kD / 16; first += kWords) {
      std::uint32_t low[kWords];
      std::uint32_t high[kWords];
      const auto offset = static_cast<std::uint32_t>(first * (kChunks ? 4 : 16));
      ptx::load_shared(low, row + offset);
      ptx::load_shared(high, row + offset + static_cast<std::uint32_t>(8 * Shape::kPitchK));
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        const std::uint32_t k[4] = {
            ptx::widen_pair<Shape::kKV, false>(low[i]), ptx::widen_pair<Shape::kKV, false>(high[i]),
            ptx::widen_pair<Shape::kKV, true>(low[i]), ptx::widen_pair<Shape::kKV, true>(high[i])};
        multiply(first + i, k);
      }
    }
  } else {
    const std::uint32_t row =
        keys + static_cast<std::uint32_t>(key_of<Shape>(lane / 4) * Shape::kPitchK + lane % 4 * 8);
#pragma unroll
    for (int block = 0; block < Shape::kD / 32; ++block) {
      std::uint32_t low[2];
      std::uint32_t high[2];
      load_words<kInline>(low, row + static_cast<std::uint32_t>(block * 32));
      load_words<kInline>(high, row + static_cast<std::uint32_t>(block * 32 + 8 * Shape::kPitchK));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::uint32_t k[4] = {
            ptx::widen_pair<Shape::kKV, false>(low[half]), ptx::widen_pair<Shape::kKV, false>(high[half]),
            ptx::widen_pair<Shape::kKV, true>(low[half]), ptx::widen_pair<Shape::kKV, true>(high[half])};
        multiply(2 * block + half, k);
      }
    }
  }
}

// values += weights * V for all row tiles; `part` is the stream whose values these are.
template <class Shape, bool kInline>
__device__ QUIRE_INLINE void add_values(const std::uint32_t (&weights)[Shape::kTiles][2], std::uint32_t tile_values,
                                        int part, DecodeState<Shape>& state) {
  using T = DecodeNumber<Shape>;
  const int lane = static_cast<int>(threadIdx.x % 32);
  constexpr int kFragments = Shape::kDvPart / 16;
  const auto multiply = [&](int j, const std::uint32_t(&v)[4]) {
#pragma unroll
    for (int tile = 0; tile < Shape::kTiles; ++tile) {
      ptx::mma_16816<T>(state.values[tile][part * kFragments + j], v, weights[tile][0], weights[tile][1]);
    }
  };
  if constexpr (Shape::kBytes == 2) {
    const std::uint32_t row = tile_values + static_cast<std::uint32_t>((lane / 16 * 8 + lane % 8) * Shape::kPitchV);
    const int turn = Shape::is_swizzled(Shape::kDv) ? lane % 8 : 0;
#pragma unroll
    for (int j = 0; j < kFragments; ++j) {
      std::uint32_t v[4];
      const int chunk = 2 * (part * kFragments + j) + lane / 8 % 2;
      ptx::ldmatrix_x4_transposed(v, row + static_cast<std::uint32_t>((chunk ^ turn) * 16));
      multiply(j, v);
    }
  } else {
    // A lane reads kDvPart / 8 neighbouring elements of its four keys, up to 16 at a time.
    constexpr int kWords = Shape::kDvPart / 32;
    constexpr int kWide = kWords % 4 == 0 ? 4 : kWords % 2 == 0 ? 2 : 1;
    const std::uint32_t column =
        tile_values + static_cast<std::uint32_t>(part * Shape::kDvPart + lane / 4 * kWords * 4);
    const std::uint32_t even = column + static_cast<std::uint32_t>(key_of<Shape>(lane % 4 * 2) * Shape::kPitchV);
    const std::uint32_t odd = column + static_cast<std::uint32_t>(key_of<Shape>(lane % 4 * 2 + 1) * Shape::kPitchV);
#pragma unroll
    for (int base = 0; base < kWords; base += kWide) {
      std::uint32_t rows[4][kWide];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const auto offset = static_cast<std::uint32_t>(half * 8 * Shape::kPitchV + base * 4);
        load_words<kInline>(rows[2 * half], even + offset, word_turn<Shape>());
        load_words<kInline>(rows[2 * half + 1], odd + offset, word_turn<Shape>());
      }
#pragma unroll
      for (int pair = 0; pair < 2 * kWide; ++pair) {
        const int word = pair / 2;
        const unsigned order = pair % 2 == 0 ? 0x5140u : 0x7362u;
        const std::uint32_t low = __byte_perm(rows[0][word], rows[1][word], order);
        const std::uint32_t high = __byte_perm(rows[2][word], rows[3][word], order);
        const std::uint32_t v[4] = {ptx::widen_pair<Shape::kKV, false>(low), ptx::widen_pair<Shape::kKV, true>(low),
                                    ptx::widen_pair<Shape::kKV, false>(high), ptx::widen_pair<Shape::kKV, true>(high)};
        multiply(base * 2 + pair, v);
      }
    }
  }
}

}  // namespace quire::cuda
