// Stores new keys and values at their slots, rotated before where that is asked for, eight elements a lane: a team of
// 1 to 32 lanes (as many as a row has packs) for kRows heads of a token. A file includes this for one dtype of the
// source.
//
// Cost: reads and writes every element once, by 16 bytes a lane for 16-bit types; a row's largest value and the other
// half of rotated pairs come from other lanes' registers. A team has all its rows, K and V, under way together, and
// reads its token's slot, position and angles once. Bound by memory; small calls, with one head a team, by latency.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "core/checked.h"
#include "cuda/block/rows.h"
#include "cuda/block/store_row.h"
#include "kv/codec/list.h"

namespace quire::cuda {
namespace packed {

constexpr int kThreads = 256;
constexpr int kPack = 8;

template <class Code>
struct alignas(sizeof(Code) * kPack > 16 ? 16 : sizeof(Code) * kPack) Pack {
  Code values[kPack];
};

// Pairs of floats as two elements in one word (float32: the bits of two words).
__device__ inline std::uint32_t narrow_pair(Float16Element, float first, float second) {
  const __half2 pair = __floats2half2_rn(first, second);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}
__device__ inline std::uint32_t narrow_pair(BFloat16Element, float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}
// The hardware makes every NaN positive; here it keeps its sign as on the CPU.
template <class Element>
__device__ inline std::uint32_t narrow_float8_pair(float first, float second) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  std::uint16_t pair;
  if constexpr (Element::kDType == DType::kFloat8E4M3) {
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(second), "f"(first));
  } else {
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(second), "f"(first));
  }
  if (first == first && second == second) return pair;
#endif
  return Element::encode(first) | static_cast<std::uint32_t>(Element::encode(second)) << 8;
}
__device__ inline std::uint32_t narrow_pair(E4M3Element, float first, float second) {
  return narrow_float8_pair<E4M3Element>(first, second);
}
__device__ inline std::uint32_t narrow_pair(E5M2Element, float first, float second) {
  return narrow_float8_pair<E5M2Element>(first, second);
}
// The instruction does what the element's encode does: to nearest even, saturated, NaN as 0.
__device__ inline std::uint32_t narrow_pair(Int8Element, float first, float second) {
  std::int32_t low;
  std::int32_t high;
  asm("cvt.rni.sat.s8.f32 %0, %1;" : "=r"(low) : "f"(first));
  asm("cvt.rni.sat.s8.f32 %0, %1;" : "=r"(high) : "f"(second));
  return __byte_perm(static_cast<std::uint32_t>(low), static_cast<std::uint32_t>(high), 0x5540) & 0xffffu;
}

template <class Element>
__device__ inline Pack<typename Element::Code> narrow(const float (&x)[kPack]) {
  Pack<typename Element::Code> out;
  if constexpr (sizeof(typename Element::Code) == 4) {
    for (int i = 0; i < kPack; ++i) out.values[i] = x[i];
  } else if constexpr (sizeof(typename Element::Code) == 2) {
    auto* words = reinterpret_cast<std::uint32_t*>(&out);
#pragma unroll
    for (int i = 0; i < kPack / 2; ++i) words[i] = narrow_pair(Element{}, x[2 * i], x[2 * i + 1]);
  } else {
    auto* words = reinterpret_cast<std::uint32_t*>(&out);
#pragma unroll
    for (int i = 0; i < kPack / 4; ++i) {
      words[i] = narrow_pair(Element{}, x[4 * i], x[4 * i + 1]) | narrow_pair(Element{}, x[4 * i + 2], x[4 * i + 3])
                                                                      << 16;
    }
  }
  return out;
}

// Exact quotients by one divisor: a product with the rounded reciprocal and one correction, which is right where
// nothing over- or underflows. Larger quotients saturate in every 8-bit format and need no correction.
struct Divider {
  float divisor = 1.0f;
  float reciprocal = 1.0f;
  bool is_moderate = true;

  __device__ explicit Divider(float by) : divisor(by), reciprocal(1.0f / by), is_moderate(by > 1e-18f && by < 1e18f) {}
  __device__ float operator()(float x) const {
    if (!is_moderate) return x / divisor;
    const float quotient = x * reciprocal;
    const float corrected = __fmaf_rn(__fmaf_rn(-quotient, divisor, x), reciprocal, quotient);
    return fabsf(quotient) < 1e6f && fabsf(x) > 1e-18f ? corrected : quotient;
  }
};

template <class Element>
__device__ inline void widen(const Pack<typename Element::Code>& from, float (&x)[kPack]) {
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    if constexpr (Element::kDType == DType::kFloat16) {
      x[i] = __half2float(__ushort_as_half(from.values[i]));
    } else {
      x[i] = Element::decode(from.values[i]);
    }
  }
}

// Where this lane is in its team and row.
struct Lane {
  std::int32_t lanes = 32;
  std::int32_t first = 0;  // element of the row

  __device__ float team_max(float value) const {
    for (std::int32_t offset = lanes / 2; offset > 0; offset /= 2) {
      value = fmaxf(value, __shfl_xor_sync(kFullWarp, value, offset));
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
      const float turned = __fmul_rn(pair[i], angles.sine[i]);
      const float kept = __fmul_rn(x[i], angles.cosine[i]);
      x[i] = turn.is_low ? __fsub_rn(kept, turned) : __fadd_rn(kept, turned);
    }
  }
  if (turn.rotates) raw = narrow<Source>(x);
}

template <class Code>
__device__ inline void put(const Pack<Code>& pack, Code* to, bool wide) {
  if constexpr (sizeof(Code) == 1) {
    if (!wide) {
      const auto* words = reinterpret_cast<const std::uint32_t*>(&pack);
      reinterpret_cast<std::uint32_t*>(to)[0] = words[0];
      reinterpret_cast<std::uint32_t*>(to)[1] = words[1];
      return;
    }
  }
  *reinterpret_cast<Pack<Code>*>(to) = pack;
}

// Where the heads of one token go in K or V of the cache.
struct CachePlace {
  const KVRows* streams = nullptr;
  std::int32_t num_streams = 1;
  KVPlace place;

  __device__ std::int32_t stream(std::int32_t head) const { return num_streams == 2 ? head & 1 : 0; }
  __device__ std::int32_t kv_head(std::int32_t head) const { return num_streams == 2 ? head >> 1 : head; }
  __device__ std::int64_t offset(std::int32_t head) const {
    return row_offset(streams[stream(head)], place, kv_head(head));
  }
  __device__ float* scale(std::int32_t head) const {
    const KVRows& to = streams[stream(head)];
    return to.scales + place.page * to.scale_page_stride + place.token * to.scale_token_stride +
           kv_head(head) * to.scale_head_stride;
  }
};

// Stores the team's row of `size` elements if `stores`; every lane of the warp must come here.
template <class Source, class Codec>
__device__ inline void store_row(const CachePlace& cache, std::int32_t head, std::int32_t size, const Lane& lane,
                                 bool stores, bool wide, const Pack<typename Source::Code>& raw) {
  using Element = typename Codec::Element;
  const KVRows& rows = cache.streams[cache.stream(head)];
  const bool has_pack = stores && lane.first < size;
  auto* const to = static_cast<typename Element::Code*>(rows.data) + cache.offset(head) + lane.first;
  if constexpr (Codec::kScale == ScaleKind::kNone && Element::kDType == Source::kDType) {
    if (has_pack) put(raw, to, wide);
  } else {
    float x[kPack];
    widen<Source>(raw, x);
    if constexpr (Codec::kScale == ScaleKind::kRow) {
      float largest = 0.0f;
#pragma unroll
      for (int i = 0; i < kPack; ++i) largest = fmaxf(largest, fabsf(x[i]));  // packs beyond the row are zeros
      const float scale = Codec::scale_of(lane.team_max(largest));
      if (stores && lane.first == 0) *cache.scale(head) = scale;
      const float inverse = Codec::of_scale(scale).inverse;
#pragma unroll
      for (int i = 0; i < kPack; ++i) x[i] *= inverse;
    } else if constexpr (Codec::kScale == ScaleKind::kTensor) {
      const Divider divide(rows.tensor_scale);
#pragma unroll
      for (int i = 0; i < kPack; ++i) x[i] = divide(x[i]);
    }
    if (has_pack) put(narrow<Element>(x), to, wide);
  }
}

// The pack of this lane of a row of the source.
template <class Source>
__device__ inline Pack<typename Source::Code>* pack_at(const TokenRows& rows, std::int64_t token, std::int32_t head,
                                                       const Lane& lane) {
  auto* row = static_cast<typename Source::Code*>(rows.data) + token * rows.token_stride + head * rows.head_stride;
  return reinterpret_cast<Pack<typename Source::Code>*>(row + lane.first);
}

template <class Source, class Codec, bool kRotates, int kRows>
__global__ void __launch_bounds__(kThreads) packed_store_kernel(const __grid_constant__ StoreParams params) {
  const StoreArgs& store = params.store;
  const auto thread = blockIdx.x * kThreads + threadIdx.x;
  const auto lanes = static_cast<std::uint32_t>(params.team_lanes);
  const Lane lane{static_cast<std::int32_t>(lanes), static_cast<std::int32_t>(thread % lanes) * kPack};
  const std::int32_t q_units = kRotates ? (params.rope.query.num_heads + kRows - 1) / kRows : 0;
  const auto units = static_cast<std::uint32_t>(q_units + (store.key.num_heads + kRows - 1) / kRows);
  const std::uint32_t token = thread / lanes / units;
  const auto unit = static_cast<std::int32_t>(thread / lanes % units);
  const bool is_query = unit < q_units;
  const std::int32_t head = (is_query ? unit : unit - q_units) * kRows;
  const bool rotated = kRotates && token < params.rope.num_positions;
  const bool exists = is_query ? rotated : token < store.num_slots;

  // All loads first, then what depends on them.
  const TokenRows& rows = is_query ? params.rope.query : store.key;
  Pack<typename Source::Code> raw[kRows] = {};
  Pack<typename Source::Code> value[kRows] = {};
  const std::int32_t num_heads = exists ? min(kRows, rows.num_heads - head) : 0;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    if (i >= num_heads) continue;
    if (lane.first < rows.size) raw[i] = *pack_at<Source>(rows, token, head + i, lane);
    if (!is_query && lane.first < store.value.size) value[i] = *pack_at<Source>(store.value, token, head + i, lane);
  }
  const std::int64_t slot = exists && !is_query ? store.slots[token] : -1;
  const std::int64_t position = rotated ? checked_position(params, token) : 0;
  KVPlace place = slot_place(params, token, slot);
  if (position < 0) place.page = -1;
  const bool stores = place.page >= 0;

  if constexpr (kRotates) {
    Angles angles;
    const bool turns = rotated && exists && position >= 0 && (is_query || stores);
    const Turn turn = turn_of(params.rope, lane, turns, angles, position);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      rotate<Source>(params.rope.style, turn, angles, raw[i]);
      if (turn.rotates && i < num_heads) *pack_at<Source>(rows, token, head + i, lane) = raw[i];
    }
    if (!__any_sync(kFullWarp, stores)) return;
  }
  if (!stores) place = {0, 0};
  const CachePlace keys{store.cache.key, store.cache.num_streams, place};
  const CachePlace values{store.cache.value, store.cache.num_streams, place};
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const bool has_row = stores && i < num_heads;
    const std::int32_t at = has_row ? head + i : 0;
    store_row<Source, Codec>(keys, at, store.key.size, lane, has_row, params.wide_cache, raw[i]);
    store_row<Source, Codec>(values, at, store.value.size, lane, has_row, params.wide_cache, value[i]);
  }
}

constexpr int kManyRows = 2;
constexpr std::int64_t kManyThreads = std::int64_t{1} << 18;  // enough for every multiprocessor

template <class Source, class Codec, bool kRotates>
void launch_rows(const StoreParams& params, cudaStream_t stream) {
  const auto threads = [&](std::int64_t rows) {
    const std::int64_t units = ceil_div(params.rope.query.num_heads, rows) + ceil_div(params.store.key.num_heads, rows);
    return params.num_tokens() * units * params.team_lanes;
  };
  const auto blocks = [](std::int64_t count) { return static_cast<unsigned>(ceil_div(count, kThreads)); };
  if (threads(kManyRows) >= kManyThreads) {
    packed_store_kernel<Source, Codec, kRotates, kManyRows>
        <<<blocks(threads(kManyRows)), kThreads, 0, stream>>>(params);
  } else {
    packed_store_kernel<Source, Codec, kRotates, 1><<<blocks(threads(1)), kThreads, 0, stream>>>(params);
  }
}

template <class Source>
bool launch(const StoreParams& params, cudaStream_t stream) {
  return visit_codec(params.store.cache.dtype, params.store.cache.key[0].scales != nullptr, [&](auto codec) {
    if (params.rotates()) {
      launch_rows<Source, decltype(codec), true>(params, stream);
    } else {
      launch_rows<Source, decltype(codec), false>(params, stream);
    }
  });
}

}  // namespace packed
}  // namespace quire::cuda
