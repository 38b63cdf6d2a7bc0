// Stored 8-bit elements to pairs of float16, exactly.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "quire/dtype.h"

namespace quire::cuda::ptx {

__device__ inline std::uint32_t half2_bits(__half2 value) { return *reinterpret_cast<const std::uint32_t*>(&value); }
__device__ inline __half2 bits_half2(std::uint32_t bits) { return *reinterpret_cast<const __half2*>(&bits); }

// The two elements in the low (kUpper: high) half of `word` as float16; the first is the lower.
template <DType kKV, bool kUpper>
__device__ inline std::uint32_t widen_pair(std::uint32_t word) {
  if constexpr (kKV == DType::kInt8) {
    // 0x64uu is 1024 + u in float16, with u = x + 128.
    const std::uint32_t biased = __byte_perm(word ^ 0x80808080u, 0x64646464u, kUpper ? 0x4342 : 0x4140);
    return half2_bits(__hsub2(bits_half2(biased), __float2half2_rn(1152.0f)));
  } else if constexpr (kKV == DType::kFloat8E5M2) {
    return __byte_perm(word, 0u, kUpper ? 0x3424 : 0x1404);
  } else {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    std::uint32_t wide;
    const auto pair = static_cast<std::uint16_t>(kUpper ? word >> 16 : word & 0xffffu);
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(wide) : "h"(pair));
    return wide;
#else
    // The exponent's bias differs by 8; the product with 2^8 is exact, also for subnormals. The NaN code (all ones)
    // becomes 480 by that and is put right.
    const std::uint32_t spread = __byte_perm(word, 0u, kUpper ? 0x3424 : 0x1404);
    const std::uint32_t shifted = (spread & 0x80008000u) | ((spread & 0x7f007f00u) >> 1);
    const std::uint32_t is_nan = __vcmpeq2(spread & 0x7f007f00u, 0x7f007f00u);
    return half2_bits(__hmul2(bits_half2(shifted), __float2half2_rn(256.0f))) | (is_nan & 0x7e007e00u);
#endif
  }
}

// Four 8-bit elements as T, exactly.
template <class T, DType kKV>
__device__ inline uint2 widen_four(std::uint32_t word) {
  const std::uint32_t low = widen_pair<kKV, false>(word);
  const std::uint32_t high = widen_pair<kKV, true>(word);
  if constexpr (__is_same(T, __half)) return make_uint2(low, high);
  const float2 first = __half22float2(bits_half2(low));
  const float2 second = __half22float2(bits_half2(high));
  const __nv_bfloat162 a = __floats2bfloat162_rn(first.x, first.y);
  const __nv_bfloat162 b = __floats2bfloat162_rn(second.x, second.y);
  return make_uint2(*reinterpret_cast<const std::uint32_t*>(&a), *reinterpret_cast<const std::uint32_t*>(&b));
}

template <class T>
__device__ inline uint2 widen_word(DType kv, std::uint32_t word) {
  if (kv == DType::kFloat8E4M3) return widen_four<T, DType::kFloat8E4M3>(word);
  if (kv == DType::kFloat8E5M2) return widen_four<T, DType::kFloat8E5M2>(word);
  return widen_four<T, DType::kInt8>(word);
}

}  // namespace quire::cuda::ptx
