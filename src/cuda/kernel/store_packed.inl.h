// Stores new keys and values at their slots, rotated before where that is asked for, eight elements a lane: a team of
// 1 to 32 lanes (as many as a row has packs) a row, or some heads of a token. A file includes this for one source
// dtype.
//
// Cost: reads and writes every element once, by 16 bytes a lane for 16-bit types; a row's largest value and the other
// half of rotated pairs come from other lanes' registers. A team of several heads has them, K and V, under way together
// and reads its token's slot, position and angles once. Bound by memory; small calls, with one head a team, by latency.
#pragma once

#include <type_traits>

#include "core/checked.h"
#include "cuda/block/pack.h"
#include "cuda/block/rows.h"
#include "cuda/block/store_row.h"
#include "kv/codec/list.h"

namespace quire::cuda {
namespace packed {

constexpr int kThreads = 128;

// Any elements divided by `factor` (row scales: multiplied with it), as the CPU does it. Not inlined: packs with NaNs,
// whose sign the instructions lose, and with overflows are rare.
template <class Source, class Codec>
static __device__ __noinline__ uint2 encode_any(Pack<typename Source::Code> raw, float factor) {
  using Element = typename Codec::Element;
  std::uint64_t codes = 0;
#pragma unroll 1
  for (int i = 0; i < kPack; ++i) {
    float x = Source::decode(raw.values[i]);
    if (x == x) x = Codec::kScale == ScaleKind::kRow ? x * factor : x / factor;  // products lose a NaN's sign
    const auto code = Element::encode(x);
    codes |= static_cast<std::uint64_t>(static_cast<std::uint8_t>(code)) << (8 * i);
  }
  return make_uint2(static_cast<std::uint32_t>(codes), static_cast<std::uint32_t>(codes >> 32));
}

// Exact quotients by one divisor: a product with the rounded reciprocal and one correction, which is right where
// nothing over- or underflows.
__device__ inline void divide(float (&x)[kPack], float divisor, float reciprocal) {
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    const float quotient = x[i] * reciprocal;
    x[i] = __fmaf_rn(__fmaf_rn(-quotient, divisor, x[i]), reciprocal, quotient);
  }
}

// The largest magnitude of a pack; NaN if there is one.
template <class Source>
__device__ inline float largest_of(const Pack<typename Source::Code>& raw, const float (&x)[kPack]) {
  if constexpr (Source::kDType == DType::kFloat32) {
    float largest = 0.0f;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      largest = fmaxf(largest, fabsf(x[i]));
      sum += fabsf(x[i]);
    }
    return sum != sum ? sum : largest;
  } else {
    using Pair = std::conditional_t<Source::kDType == DType::kBFloat16, __nv_bfloat162, __half2>;
    const auto* pairs = reinterpret_cast<const Pair*>(&raw);
    const Pair most = __hmax2_nan(__hmax2_nan(__habs2(pairs[0]), __habs2(pairs[1])),
                                  __hmax2_nan(__habs2(pairs[2]), __habs2(pairs[3])));
    return static_cast<float>(__hmax_nan(most.x, most.y));
  }
}

// The same, NaNs left out. Not inlined: few packs have any.
static __device__ __noinline__ float largest_number(float4 a, float4 b) {
  return fmaxf(fmaxf(fmaxf(fabsf(a.x), fabsf(a.y)), fmaxf(fabsf(a.z), fabsf(a.w))),
               fmaxf(fmaxf(fabsf(b.x), fabsf(b.y)), fmaxf(fabsf(b.z), fabsf(b.w))));
}

// Where this lane is in its team and row.
struct Lane {
  std::int32_t lanes = 32;
  std::int32_t first = 0;  // element of the row

  __device__ float team_max(float value) const {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      if (offset < lanes) value = fmaxf(value, __shfl_xor_sync(kFullWarp, value, offset));
    }
    return value;
  }
};

// A lane's cosines and sines: kPack of each for Neox pairs, half as many for GPT-J ones.
struct Angles {
  float cosine[kPack];
  float sine[kPack];
};

__device__ inline float angle_of(DType dtype, std::uint32_t word, int upper) {
  if (dtype == DType::kBFloat16) return __uint_as_float(upper ? word & 0xffff0000u : word << 16);
  return __half2float(__ushort_as_half(static_cast<std::uint16_t>(upper ? word >> 16 : word & 0xffffu)));
}

// kCount numbers of the table from `first` on.
template <int kCount>
__device__ inline void load_angles(const RopeStoreArgs& rope, std::int64_t first, float (&x)[kPack]) {
  if (rope.cos_sin_dtype == DType::kFloat32) {
    const auto* words = reinterpret_cast<const float4*>(static_cast<const float*>(rope.cos_sin) + first);
#pragma unroll
    for (int i = 0; i < kCount / 4; ++i) {
      const float4 four = words[i];
      x[4 * i] = four.x, x[4 * i + 1] = four.y, x[4 * i + 2] = four.z, x[4 * i + 3] = four.w;
    }
    return;
  }
  const auto* from = static_cast<const std::uint16_t*>(rope.cos_sin) + first;
  std::uint32_t words[kCount / 2];
  if constexpr (kCount == 8) {
    const uint4 eight = *reinterpret_cast<const uint4*>(from);
    words[0] = eight.x, words[1] = eight.y, words[2] = eight.z, words[3] = eight.w;
  } else {
    const uint2 four = *reinterpret_cast<const uint2*>(from);
    words[0] = four.x, words[1] = four.y;
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) x[i] = angle_of(rope.cos_sin_dtype, words[i / 2], i & 1);
}

// Where a lane stands in rows that are rotated.
struct Turn {
  bool rotates = false;    // this lane's pack takes part
  bool is_low = false;     // Neox: the first of its pairs
  std::int32_t other = 0;  // Neox: the lane of the warp that has the other half
};

__device__ inline Turn turn_of(const RopeStoreArgs& rope, const Lane& lane, bool has_position, Angles& angles,
                               std::int64_t position) {
  const std::int32_t half = rope.rotary_dim / 2;
  const auto own = static_cast<std::int32_t>(threadIdx.x % 32);
  Turn turn{.rotates = has_position && lane.first < rope.rotary_dim, .is_low = lane.first < half, .other = own};
  if (!turn.rotates) return turn;
  const std::int64_t row = position * rope.cos_sin_stride;
  if (rope.style == RopeStyle::kGptj) {
    load_angles<kPack / 2>(rope, row + lane.first / 2, angles.cosine);
    load_angles<kPack / 2>(rope, row + half + lane.first / 2, angles.sine);
    return turn;
  }
  turn.other = turn.is_low ? own + half / kPack : own - half / kPack;
  const std::int32_t index = turn.is_low ? lane.first : lane.first - half;
  load_angles<kPack>(rope, row + index, angles.cosine);
  load_angles<kPack>(rope, row + half + index, angles.sine);
  if (turn.is_low) {  // x - y is x + (-y), bit for bit
#pragma unroll
    for (int i = 0; i < kPack; ++i) angles.sine[i] = -angles.sine[i];
  }
  return turn;
}

// Rotates a row in registers; every lane of the warp must come here.
template <class Source>
__device__ inline void rotate(RopeStyle style, const Turn& turn, const Angles& angles,
                              Pack<typename Source::Code>& raw) {
  float x[kPack];
  widen<Source>(raw, x);
  if (style == RopeStyle::kGptj) {
#pragma unroll
    for (int i = 0; i < kPack / 2; ++i) {
      const float first = x[2 * i];
      const float second = x[2 * i + 1];
      x[2 * i] = __fsub_rn(__fmul_rn(first, angles.cosine[i]), __fmul_rn(second, angles.sine[i]));
      x[2 * i + 1] = __fadd_rn(__fmul_rn(second, angles.cosine[i]), __fmul_rn(first, angles.sine[i]));
    }
  } else {
    Pack<typename Source::Code> there;
    const auto* words = reinterpret_cast<const std::uint32_t*>(&raw);
    auto* const other_words = reinterpret_cast<std::uint32_t*>(&there);
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(raw) / 4); ++i) {
      other_words[i] = __shfl_sync(kFullWarp, words[i], turn.other);
    }
    float pair[kPack];
    widen<Source>(there, pair);
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      x[i] = __fadd_rn(__fmul_rn(x[i], angles.cosine[i]), __fmul_rn(pair[i], angles.sine[i]));
    }
  }
  if (turn.rotates) raw = narrow<Source>(x);
}

// Where a head of one token goes: the same offsets in K and V.
struct CachePlace {
  std::int64_t row = 0;    // element
  std::int64_t scale = 0;  // float
  std::int32_t stream = 0;
};

template <bool kScales>
__device__ inline CachePlace cache_place(const PackedParams& params, std::uint32_t page, std::uint32_t token,
                                         std::int32_t head) {
  CachePlace place;
  auto kv_head = static_cast<std::uint32_t>(head);
  if (params.base.store.cache.num_streams == 2) {
    place.stream = head & 1;
    kv_head >>= 1;
  }
  const auto at = [&](const PackedStrides& strides) {
    return static_cast<std::int64_t>(static_cast<std::uint64_t>(page) * strides.page) +
           static_cast<std::int64_t>(token * strides.token + kv_head * strides.head);
  };
  place.row = at(params.rows);
  if constexpr (kScales) place.scale = at(params.scales);
  return place;
}

// A pack as 8-bit elements with a scale; the team's row scale is stored if `stores`.
template <class Source, class Codec>
__device__ inline uint2 encode(const KVRows& rows, const CachePlace& place, const Lane& lane, bool stores,
                               const Pack<typename Source::Code>& raw) {
  float x[kPack];
  widen<Source>(raw, x);
  float largest = largest_of<Source>(raw, x);
  float factor = rows.tensor_scale;
  bool is_usual = false;
  if constexpr (Codec::kScale == ScaleKind::kRow) {
    is_usual = largest < INFINITY;
    if (largest != largest) {
      largest = largest_number(make_float4(x[0], x[1], x[2], x[3]), make_float4(x[4], x[5], x[6], x[7]));
    }
    const float scale = Codec::scale_of(lane.team_max(largest));  // packs beyond the row are zeros
    if (stores && lane.first == 0) rows.scales[place.scale] = scale;
    factor = Codec::of_scale(scale).inverse;
#pragma unroll
    for (int i = 0; i < kPack; ++i) x[i] *= factor;
  } else {
    const float reciprocal = __frcp_rn(factor);
    is_usual = factor > 1e-18f && factor < 1e18f && largest * reciprocal < 1e30f;
    divide(x, factor, reciprocal);
  }
  return is_usual ? narrow_bytes<typename Codec::Element>(x) : encode_any<Source, Codec>(raw, factor);
}

// Stores the team's row of `size` elements if `stores`; every lane of the warp must come here.
template <class Source, class Codec>
__device__ inline void store_row(const KVRows& rows, const CachePlace& place, std::int32_t size, const Lane& lane,
                                 bool stores, bool wide, const Pack<typename Source::Code>& raw) {
  using Element = typename Codec::Element;
  const bool has_pack = stores && lane.first < size;
  auto* const to = static_cast<typename Element::Code*>(rows.data) + place.row + lane.first;
  if constexpr (Codec::kScale != ScaleKind::kNone) {
    const uint2 codes = encode<Source, Codec>(rows, place, lane, stores, raw);
    if (has_pack) put(*reinterpret_cast<const Pack<typename Element::Code>*>(&codes), to, wide);
  } else if constexpr (Element::kDType == Source::kDType) {
    if (has_pack) put(raw, to, wide);
  } else {
    float x[kPack];
    widen<Source>(raw, x);
    if (has_pack) put(narrow<Element>(x), to, wide);
  }
}

// The pack of this lane of a row of the source.
template <class Source>
__device__ inline Pack<typename Source::Code>* pack_at(const TokenRows& rows, std::int64_t token, std::int32_t head,
                                                       const Lane& lane) {
  auto* row = static_cast<typename Source::Code*>(rows.data) + token * rows.token_stride +
              static_cast<std::int64_t>(head) * rows.head_stride;
  return reinterpret_cast<Pack<typename Source::Code>*>(row + lane.first);
}

// kRows heads of a token's query from `head` on, in place.
template <class Source, int kRows>
__device__ inline void rotate_queries(const PackedParams& params, const Lane& lane, std::int64_t token,
                                      std::int32_t head) {
  const RopeStoreArgs& rope = params.base.rope;
  const bool exists = token < rope.num_positions;
  const std::int32_t num_heads = exists ? min(kRows, rope.query.num_heads - head) : 0;
  Pack<typename Source::Code> raw[kRows] = {};
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    if (i < num_heads && lane.first < rope.rotary_dim) raw[i] = *pack_at<Source>(rope.query, token, head + i, lane);
  }
  const std::int64_t position = exists ? checked_position(params.base, token) : -1;
  Angles angles;
  const Turn turn = turn_of(rope, lane, position >= 0, angles, position);
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    rotate<Source>(rope.style, turn, angles, raw[i]);
    if (turn.rotates && i < num_heads) *pack_at<Source>(rope.query, token, head + i, lane) = raw[i];
  }
}

// One row of a token, of the key or of the value, into the cache.
template <class Source, class Codec>
__device__ inline void store_one(const PackedParams& params, const Lane& lane, std::int64_t token, std::int32_t head,
                                 bool is_value) {
  const StoreArgs& store = params.base.store;
  const TokenRows& rows = is_value ? store.value : store.key;
  const bool exists = token < store.num_slots;
  Pack<typename Source::Code> raw = {};
  if (exists && lane.first < rows.size) raw = *pack_at<Source>(rows, token, head, lane);
  const KVPlace place = slot_place(params.base, token, exists ? store.slots[token] : -1);
  const bool stores = place.page >= 0;
  const CachePlace at = cache_place<Codec::kScale == ScaleKind::kRow>(
      params, static_cast<std::uint32_t>(stores ? place.page : 0), static_cast<std::uint32_t>(place.token), head);
  const KVRows& to = is_value ? store.cache.value[at.stream] : store.cache.key[at.stream];
  store_row<Source, Codec>(to, at, rows.size, lane, stores, params.wide_cache, raw);
}

// kRows heads of a token from `head` on: the key, rotated where kRotates, and the value into the cache.
template <class Source, class Codec, bool kRotates, int kRows>
__device__ inline void store_heads(const PackedParams& params, const Lane& lane, std::int64_t token,
                                   std::int32_t head) {
  const StoreArgs& store = params.base.store;
  const RopeStoreArgs& rope = params.base.rope;
  const bool exists = token < store.num_slots;
  const std::int32_t num_heads = exists ? min(kRows, store.key.num_heads - head) : 0;
  // All loads first, then what depends on them.
  Pack<typename Source::Code> key[kRows] = {};
  Pack<typename Source::Code> value[kRows] = {};
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    if (i >= num_heads) continue;
    if (lane.first < store.key.size) key[i] = load_once(pack_at<Source>(store.key, token, head + i, lane));
    if (lane.first < store.value.size) value[i] = load_once(pack_at<Source>(store.value, token, head + i, lane));
  }
  KVPlace place = slot_place(params.base, token, exists ? store.slots[token] : -1);
  if constexpr (kRotates) {
    const bool rotated = exists && token < rope.num_positions;
    const std::int64_t position = rotated ? checked_position(params.base, token) : 0;
    if (position < 0) place.page = -1;
    Angles angles;
    const Turn turn = turn_of(rope, lane, rotated && place.page >= 0, angles, position);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      rotate<Source>(rope.style, turn, angles, key[i]);
      if (turn.rotates && i < num_heads) *pack_at<Source>(store.key, token, head + i, lane) = key[i];
    }
  }
  const bool stores = place.page >= 0;
  const auto page = static_cast<std::uint32_t>(stores ? place.page : 0);
  const auto offset = static_cast<std::uint32_t>(place.token);
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const bool has_row = stores && i < num_heads;
    const CachePlace at = cache_place<Codec::kScale == ScaleKind::kRow>(params, page, offset, has_row ? head + i : 0);
    const KVSource& cache = store.cache;
    store_row<Source, Codec>(cache.key[at.stream], at, store.key.size, lane, has_row, params.wide_cache, key[i]);
    store_row<Source, Codec>(cache.value[at.stream], at, store.value.size, lane, has_row, params.wide_cache, value[i]);
  }
}

// Blocks along x are heads, so that a block does one kind of work: queries first where something is rotated, and where
// nothing is, key and value of each head or (kRows > 1) some heads; along y they are tokens.
template <class Source, class Codec, bool kRotates, int kQueryRows, int kRows>
__global__ void __launch_bounds__(kThreads) packed_store_kernel(const __grid_constant__ PackedParams params) {
  const auto thread = static_cast<std::int32_t>(threadIdx.x);
  const Lane lane{params.team_lanes, (thread & (params.team_lanes - 1)) * kPack};
  const std::int64_t token = (static_cast<std::int64_t>(blockIdx.y) * kThreads + thread) >> params.team_shift;
  const auto unit = static_cast<std::int32_t>(blockIdx.x);
  if constexpr (kRotates) {
    const std::int32_t query_units = (params.base.rope.query.num_heads + kQueryRows - 1) / kQueryRows;
    if (unit < query_units) {
      rotate_queries<Source, kQueryRows>(params, lane, token, unit * kQueryRows);
      return;
    }
    store_heads<Source, Codec, true, kRows>(params, lane, token, (unit - query_units) * kRows);
  } else if constexpr (kRows > 1) {
    store_heads<Source, Codec, false, kRows>(params, lane, token, unit * kRows);
  } else {
    store_one<Source, Codec>(params, lane, token, unit >> 1, (unit & 1) != 0);
  }
}

constexpr std::int64_t kManyTokens = 2048;  // enough for every multiprocessor with several heads a team

template <class Source, class Codec, bool kRotates, int kQueryRows, int kRows>
void launch_rows(const PackedParams& params, cudaStream_t stream) {
  const std::int64_t heads = params.base.store.key.num_heads;
  const std::int64_t queries = kRotates ? ceil_div(params.base.rope.query.num_heads, kQueryRows) : 0;
  const std::int64_t units = queries + (kRotates || kRows > 1 ? ceil_div(heads, kRows) : 2 * heads);
  const dim3 grid(static_cast<unsigned>(units),
                  static_cast<unsigned>(ceil_div(params.base.num_tokens() * params.team_lanes, kThreads)));
  packed_store_kernel<Source, Codec, kRotates, kQueryRows, kRows><<<grid, kThreads, 0, stream>>>(params);
}

template <class Source, class Codec, bool kRotates>
void launch_codec(const PackedParams& params, cudaStream_t stream) {
  // Not for float32: it is rare, and took the compiler longest.
  if constexpr (sizeof(typename Source::Code) == 2 && (kRotates || Codec::kScale != ScaleKind::kNone)) {
    if (params.base.num_tokens() >= kManyTokens) {
      constexpr int kManyRows = kRotates ? 4 : 2;  // of keys and values; where nothing is converted one row is faster
      return launch_rows<Source, Codec, kRotates, kManyRows, kManyRows>(params, stream);
    }
  }
  launch_rows<Source, Codec, kRotates, 1, 1>(params, stream);
}

template <class Source>
bool launch(const PackedParams& params, cudaStream_t stream) {
  return visit_codec(params.base.store.cache.dtype, params.base.store.cache.key[0].scales != nullptr, [&](auto codec) {
    if (params.base.rotates()) {
      launch_codec<Source, decltype(codec), true>(params, stream);
    } else {
      launch_codec<Source, decltype(codec), false>(params, stream);
    }
  });
}

}  // namespace packed
}  // namespace quire::cuda
