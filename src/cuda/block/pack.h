// Packs: eight neighbouring elements of a row, as a lane loads, converts and stores them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "kv/codec/list.h"

namespace quire::cuda::packed {

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
// Of magnitudes that need no saturation: the sum's low bits are the integer, rounded to nearest even. Conversions to
// integers run at a quarter of a sum's rate.
__device__ inline std::uint32_t narrow_pair(Int8Element, float first, float second) {
  constexpr float kIntegers = 12582912.0f;  // 1.5 * 2^23
  return __byte_perm(__float_as_uint(__fadd_rn(first, kIntegers)), __float_as_uint(__fadd_rn(second, kIntegers)),
                     0x0040);
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
__device__ inline std::uint32_t narrow_pair(E4M3Element, float first, float second) {
  std::uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(second), "f"(first));
  return pair;
}
__device__ inline std::uint32_t narrow_pair(E5M2Element, float first, float second) {
  std::uint16_t pair;
  asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(second), "f"(first));
  return pair;
}
#else
template <class Element>
__device__ inline std::uint32_t narrow_pair(Element, float first, float second) {
  return Element::encode(first) | static_cast<std::uint32_t>(Element::encode(second)) << 8;
}
#endif

// A pack of 8-bit elements without NaNs.
template <class Element>
__device__ inline uint2 narrow_bytes(const float (&x)[kPack]) {
  const auto four = [&](int i) {
    return __byte_perm(narrow_pair(Element{}, x[i], x[i + 1]), narrow_pair(Element{}, x[i + 2], x[i + 3]), 0x5410);
  };
  return make_uint2(four(0), four(4));
}

// A pack of wider elements.
template <class Element>
__device__ inline Pack<typename Element::Code> narrow(const float (&x)[kPack]) {
  Pack<typename Element::Code> out;
  auto* words = reinterpret_cast<std::uint32_t*>(&out);
  if constexpr (sizeof(typename Element::Code) == 4) {
#pragma unroll
    for (int i = 0; i < kPack; ++i) words[i] = __float_as_uint(x[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kPack / 2; ++i) words[i] = narrow_pair(Element{}, x[2 * i], x[2 * i + 1]);
  }
  return out;
}

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

// A pack that nothing reads again from its place: L2 may give it up first, and has more room for what is written.
template <class P>
__device__ inline P load_once(const P* from) {
  static_assert(sizeof(P) % 16 == 0);
  P pack;
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(P) / 16); ++i) {
    reinterpret_cast<uint4*>(&pack)[i] = __ldcs(reinterpret_cast<const uint4*>(from) + i);
  }
  return pack;
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

}  // namespace quire::cuda::packed
