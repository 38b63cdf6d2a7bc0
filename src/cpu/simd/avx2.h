// The vocabulary of AVX2 with FMA and F16C: eight lanes.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "core/convert.h"
#include "core/macros.h"

namespace quire::cpu {
namespace {

struct Simd {
  static constexpr int kLanes = 8;
  static constexpr int kRowBlock = 6;     // rows of the matrix product's register tile
  static constexpr int kVectorBlock = 2;  // and its vectors: 12 accumulators, 2 of b, 1 of a
  static constexpr bool kHasBf16 = false;
  static constexpr int kTransposedLoads = 0;  // no transposing loads
  struct F {
    __m256 v;
  };
  struct I {
    __m256i v;
  };
  struct M {
    __m256i v;  // all ones or all zeros a lane
  };

  QUIRE_INLINE static F constant(double value) { return {_mm256_set1_ps(static_cast<float>(value))}; }
  QUIRE_INLINE static F load(const float* from) { return {_mm256_loadu_ps(from)}; }
  QUIRE_INLINE static void store(float* to, F value) { _mm256_storeu_ps(to, value.v); }
  QUIRE_INLINE static F broadcast(const float* from) { return {_mm256_broadcast_ss(from)}; }
  QUIRE_INLINE static F fma(F a, F b, F c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  // The second operand where one is NaN.
  QUIRE_INLINE static F max(F a, F b) { return {_mm256_max_ps(a.v, b.v)}; }
  QUIRE_INLINE static F sqrt(F x) { return {_mm256_sqrt_ps(x.v)}; }
  QUIRE_INLINE static F select(M mask, F yes, F no) {
    return {_mm256_blendv_ps(no.v, yes.v, _mm256_castsi256_ps(mask.v))};
  }
  QUIRE_INLINE static float reduce_max(F x) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
  }
  QUIRE_INLINE static float reduce_add(F x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
  }
  QUIRE_INLINE static M less(F a, F b) { return {_mm256_castps_si256(_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ))}; }

  QUIRE_INLINE static I iota(std::int32_t first) {
    return {_mm256_add_epi32(_mm256_set1_epi32(first), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))};
  }
  QUIRE_INLINE static F to_float(I value) { return {_mm256_cvtepi32_ps(value.v)}; }
  QUIRE_INLINE static I as_int(F x) { return {_mm256_castps_si256(x.v)}; }
  QUIRE_INLINE static F as_float(I x) { return {_mm256_castsi256_ps(x.v)}; }
  QUIRE_INLINE static I bit_and(I a, std::int32_t b) { return {_mm256_and_si256(a.v, _mm256_set1_epi32(b))}; }
  QUIRE_INLINE static I bit_or(I a, I b) { return {_mm256_or_si256(a.v, b.v)}; }
  template <int kBits>
  QUIRE_INLINE static I shift_right(I x) {
    return {_mm256_srli_epi32(x.v, kBits)};
  }
  QUIRE_INLINE static I clamp_below(I index, std::int32_t count) {
    return {_mm256_min_epi32(index.v, _mm256_set1_epi32(count - 1))};
  }
  QUIRE_INLINE static M test_bit(const std::uint64_t* words, I index) {
    const __m256i below = _mm256_cmpgt_epi32(_mm256_setzero_si256(), index.v);
    const __m256i inside = _mm256_xor_si256(below, _mm256_set1_epi32(-1));
    const __m256i word = _mm256_mask_i32gather_epi32(_mm256_setzero_si256(), reinterpret_cast<const int*>(words),
                                                     _mm256_srli_epi32(index.v, 5), inside, 4);
    const __m256i bit = _mm256_srlv_epi32(word, _mm256_and_si256(index.v, _mm256_set1_epi32(31)));
    const __m256i one = _mm256_set1_epi32(1);
    return {_mm256_or_si256(below, _mm256_cmpeq_epi32(_mm256_and_si256(bit, one), one))};
  }
  QUIRE_INLINE static F lookup(const float* values, I index, std::int32_t count) {
    const __m256i above = _mm256_cmpgt_epi32(index.v, _mm256_set1_epi32(-1));
    const __m256i inside = _mm256_and_si256(above, _mm256_cmpgt_epi32(_mm256_set1_epi32(count), index.v));
    return {_mm256_mask_i32gather_ps(_mm256_setzero_ps(), values, index.v, _mm256_castsi256_ps(inside), 4)};
  }
  QUIRE_INLINE static M mask_of(std::uint64_t bits) {
    const __m256i lanes = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i mine = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits & 0xffu)), lanes);
    return {_mm256_cmpeq_epi32(mine, lanes)};
  }
  QUIRE_INLINE static std::uint64_t bits_of(M mask) {
    return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(mask.v)));
  }

  // To the nearest integer, for |x| < 2^22.
  QUIRE_INLINE static F round(F x) { return {_mm256_round_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
  // x * 2^n for an integer n <= 127; 0 below 2^-126. NaN stays.
  QUIRE_INLINE static F scale_by_power(F x, F n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
    const __m256 scaled = _mm256_mul_ps(x.v, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
    const __m256 tiny = _mm256_cmp_ps(n.v, _mm256_set1_ps(-126.0f), _CMP_LT_OQ);
    return {_mm256_andnot_ps(tiny, scaled)};
  }

  // Lane j of register i becomes lane i of register j, in steps over pairs, quads and 128-bit halves.
  QUIRE_INLINE static void transpose(F* r) {
    __m256 t[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_ps(r[i].v, r[i + 1].v);
      t[i + 1] = _mm256_unpackhi_ps(r[i].v, r[i + 1].v);
    }
    __m256 u[8];
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
      u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
      u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
      u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
      u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      r[i].v = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
      r[i + 4].v = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
    }
  }

  // kLanes elements of a row from index `first`, of which `count` exist; the rest is 0.
  template <DType kStorage>
  QUIRE_INLINE static F load_as_floats(const void* row, std::int64_t first, std::int64_t count) {
    constexpr std::int64_t kBytes = dtype_bytes(kStorage);
    const std::uint8_t* from = static_cast<const std::uint8_t*>(row) + first * kBytes;
    alignas(32) std::uint8_t some[32];
    if (count < kLanes) {
      for (std::int64_t i = 0; i < 32; ++i) some[i] = i < count * kBytes ? from[i] : std::uint8_t{0};
      from = some;
    }
    if constexpr (kBytes == 4) {
      return {_mm256_loadu_ps(reinterpret_cast<const float*>(from))};
    } else if constexpr (kBytes == 2) {
      const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
      if constexpr (kStorage == DType::kFloat16) return {_mm256_cvtph_ps(words)};
      return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16))};
    } else {
      const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
      if constexpr (kStorage == DType::kInt8) return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))};
      if constexpr (kStorage == DType::kFloat8E5M2) {  // the upper half of a float16
        return {_mm256_cvtph_ps(_mm_slli_epi16(_mm_cvtepu8_epi16(bytes), 8))};
      }
      return {e4m3_to_floats(bytes)};
    }
  }
  QUIRE_INLINE static void prefetch(const void* address) {
    _mm_prefetch(static_cast<const char*>(address), _MM_HINT_T1);
  }

 private:
  // Without denormal floats on the way, so that a caller's flush-to-zero mode changes nothing.
  QUIRE_INLINE static __m256 e4m3_to_floats(__m128i bytes) {
    const __m256i code = _mm256_cvtepu8_epi32(bytes);
    const __m256i magnitude = _mm256_and_si256(code, _mm256_set1_epi32(0x7f));
    const __m256i sign = _mm256_slli_epi32(_mm256_and_si256(code, _mm256_set1_epi32(0x80)), 24);
    const __m256 small = _mm256_mul_ps(_mm256_cvtepi32_ps(magnitude), _mm256_set1_ps(0x1p-9f));
    const __m256i large = _mm256_add_epi32(_mm256_slli_epi32(magnitude, 20), _mm256_set1_epi32(120 << 23));
    const __m256i is_small = _mm256_cmpgt_epi32(_mm256_set1_epi32(8), magnitude);
    const __m256i is_nan = _mm256_cmpeq_epi32(magnitude, _mm256_set1_epi32(0x7f));
    __m256i bits = _mm256_blendv_epi8(large, _mm256_castps_si256(small), is_small);
    bits = _mm256_blendv_epi8(bits, _mm256_set1_epi32(0x7fc00000), is_nan);
    return _mm256_castsi256_ps(_mm256_or_si256(bits, sign));
  }
};

using F32x8 = Simd::F;
using I32x8 = Simd::I;
using M32x8 = Simd::M;
QUIRE_INLINE F32x8 operator+(F32x8 a, F32x8 b) { return {_mm256_add_ps(a.v, b.v)}; }
QUIRE_INLINE F32x8 operator-(F32x8 a, F32x8 b) { return {_mm256_sub_ps(a.v, b.v)}; }
QUIRE_INLINE F32x8 operator*(F32x8 a, F32x8 b) { return {_mm256_mul_ps(a.v, b.v)}; }
QUIRE_INLINE F32x8 operator/(F32x8 a, F32x8 b) { return {_mm256_div_ps(a.v, b.v)}; }
QUIRE_INLINE F32x8 operator-(F32x8 a) { return {_mm256_xor_ps(a.v, _mm256_set1_ps(-0.0f))}; }
QUIRE_INLINE I32x8 operator+(I32x8 a, std::int32_t b) { return {_mm256_add_epi32(a.v, _mm256_set1_epi32(b))}; }
QUIRE_INLINE I32x8 operator-(I32x8 a, std::int32_t b) { return {_mm256_sub_epi32(a.v, _mm256_set1_epi32(b))}; }
QUIRE_INLINE M32x8 operator>(I32x8 a, std::int32_t b) { return {_mm256_cmpgt_epi32(a.v, _mm256_set1_epi32(b))}; }
QUIRE_INLINE M32x8 operator<(I32x8 a, std::int32_t b) { return {_mm256_cmpgt_epi32(_mm256_set1_epi32(b), a.v)}; }
QUIRE_INLINE M32x8 operator&(M32x8 a, M32x8 b) { return {_mm256_and_si256(a.v, b.v)}; }
QUIRE_INLINE M32x8 operator|(M32x8 a, M32x8 b) { return {_mm256_or_si256(a.v, b.v)}; }
QUIRE_INLINE M32x8 operator!(M32x8 a) { return {_mm256_xor_si256(a.v, _mm256_set1_epi32(-1))}; }
QUIRE_INLINE M32x8 operator<=(I32x8 a, std::int32_t b) { return !(a > b); }
QUIRE_INLINE M32x8 operator>=(I32x8 a, std::int32_t b) { return !(a < b); }

}  // namespace
}  // namespace quire::cpu
