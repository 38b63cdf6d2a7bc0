// The vocabulary of AVX-512 (F, BW, DQ, VL, VBMI): sixteen lanes.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "core/convert.h"
#include "core/macros.h"

namespace quire::cpu {
namespace {

struct Avx512 {
  static constexpr int kLanes = 16;
  static constexpr int kRowBlock = 6;     // rows of the matrix product's register tile
  static constexpr int kVectorBlock = 4;  // and its vectors: 24 accumulators, 4 of b, 1 of a
  static constexpr bool kHasBf16 = false;
  struct F {
    __m512 v;
  };
  struct I {
    __m512i v;
  };
  struct M {
    __mmask16 v;
  };

  QUIRE_INLINE static F constant(double value) { return {_mm512_set1_ps(static_cast<float>(value))}; }
  QUIRE_INLINE static F load(const float* from) { return {_mm512_loadu_ps(from)}; }
  QUIRE_INLINE static void store(float* to, F value) { _mm512_storeu_ps(to, value.v); }
  QUIRE_INLINE static F broadcast(const float* from) { return {_mm512_set1_ps(*from)}; }
  QUIRE_INLINE static F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  // The second operand where one is NaN.
  QUIRE_INLINE static F max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
  QUIRE_INLINE static F sqrt(F x) { return {_mm512_sqrt_ps(x.v)}; }
  QUIRE_INLINE static F select(M mask, F yes, F no) { return {_mm512_mask_blend_ps(mask.v, no.v, yes.v)}; }
  QUIRE_INLINE static float reduce_max(F x) { return _mm512_reduce_max_ps(x.v); }
  QUIRE_INLINE static float reduce_add(F x) { return _mm512_reduce_add_ps(x.v); }
  QUIRE_INLINE static M less(F a, F b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }

  QUIRE_INLINE static I iota(std::int32_t first) {
    return {_mm512_add_epi32(_mm512_set1_epi32(first),
                             _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15))};
  }
  QUIRE_INLINE static F to_float(I value) { return {_mm512_cvtepi32_ps(value.v)}; }
  QUIRE_INLINE static I as_int(F x) { return {_mm512_castps_si512(x.v)}; }
  QUIRE_INLINE static F as_float(I x) { return {_mm512_castsi512_ps(x.v)}; }
  QUIRE_INLINE static I bit_and(I a, std::int32_t b) { return {_mm512_and_si512(a.v, _mm512_set1_epi32(b))}; }
  QUIRE_INLINE static I bit_or(I a, I b) { return {_mm512_or_si512(a.v, b.v)}; }
  template <int kBits>
  QUIRE_INLINE static I shift_right(I x) {
    return {_mm512_srli_epi32(x.v, kBits)};
  }
  QUIRE_INLINE static I clamp_below(I index, std::int32_t count) {
    return {_mm512_min_epi32(index.v, _mm512_set1_epi32(count - 1))};
  }
  QUIRE_INLINE static M test_bit(const std::uint64_t* words, I index) {
    const __mmask16 inside = _mm512_cmpge_epi32_mask(index.v, _mm512_setzero_si512());
    const __m512i word =
        _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), inside, _mm512_srli_epi32(index.v, 5), words, 4);
    const __m512i bit = _mm512_srlv_epi32(word, _mm512_and_si512(index.v, _mm512_set1_epi32(31)));
    return {
        static_cast<__mmask16>(_mm512_test_epi32_mask(bit, _mm512_set1_epi32(1)) | static_cast<__mmask16>(~inside))};
  }
  QUIRE_INLINE static F lookup(const float* values, I index, std::int32_t count) {
    const __mmask16 inside = _mm512_cmplt_epu32_mask(index.v, _mm512_set1_epi32(count));
    return {_mm512_mask_i32gather_ps(_mm512_setzero_ps(), inside, index.v, values, 4)};
  }
  QUIRE_INLINE static M mask_of(std::uint64_t bits) { return {static_cast<__mmask16>(bits)}; }
  QUIRE_INLINE static std::uint64_t bits_of(M mask) { return mask.v; }

  // To the nearest integer, for |x| < 2^22.
  QUIRE_INLINE static F round(F x) {
    return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  }
  // x * 2^n for an integer n <= 127. NaN stays.
  QUIRE_INLINE static F scale_by_power(F x, F n) { return {_mm512_scalef_ps(x.v, n.v)}; }

  // Lane j of register i becomes lane i of register j, in four steps over pairs, quads, and 128-bit quarters.
  QUIRE_INLINE static void transpose(F* r) {
    __m512 u[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) u[i] = r[i].v;
    transpose_quarters<16>(u);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m512 low02 = _mm512_shuffle_f32x4(u[i], u[i + 4], 0x88);
      const __m512 low13 = _mm512_shuffle_f32x4(u[i], u[i + 4], 0xdd);
      const __m512 high02 = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0x88);
      const __m512 high13 = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0xdd);
      r[i].v = _mm512_shuffle_f32x4(low02, high02, 0x88);
      r[i + 4].v = _mm512_shuffle_f32x4(low13, high13, 0x88);
      r[i + 8].v = _mm512_shuffle_f32x4(low02, high02, 0xdd);
      r[i + 12].v = _mm512_shuffle_f32x4(low13, high13, 0xdd);
    }
  }

  // Lane j of register i becomes dword i after `offset` bytes of row j, i < 8. Masked loads put the halves in place,
  // which takes no shuffle; three shuffles a register remain. Calls between() before every fourth row.
  static constexpr int kTransposedLoads = 8;
  template <class Between>
  QUIRE_INLINE static void load_transposed(const void* const* rows, std::int64_t offset, F* r, Between&& between) {
    __m512 t[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const auto half = [&](int row) {
        return _mm256_loadu_ps(reinterpret_cast<const float*>(static_cast<const char*>(rows[row]) + offset));
      };
      const int row = i < 4 ? i : i + 4;
      if (i % 2 == 0) between();
      t[i] = _mm512_mask_broadcast_f32x8(_mm512_castps256_ps512(half(row)), 0xff00, half(row + 4));
    }
    transpose_quarters<8>(t);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      r[i].v = _mm512_shuffle_f32x4(t[i], t[i + 4], 0x88);
      r[i + 4].v = _mm512_shuffle_f32x4(t[i], t[i + 4], 0xdd);
    }
  }

  // kLanes elements of a row from index `first`, of which `count` exist; the rest is 0.
  template <DType kStorage>
  QUIRE_INLINE static F load_as_floats(const void* row, std::int64_t first, std::int64_t count) {
    const bool whole = count >= kLanes;
    const auto some = static_cast<__mmask16>(whole ? 0xffff : (1u << count) - 1u);
    if constexpr (kStorage == DType::kFloat32) {
      const float* from = static_cast<const float*>(row) + first;
      return {whole ? _mm512_loadu_ps(from) : _mm512_maskz_loadu_ps(some, from)};
    } else if constexpr (dtype_bytes(kStorage) == 2) {
      const std::uint16_t* from = static_cast<const std::uint16_t*>(row) + first;
      const __m256i words =
          whole ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)) : _mm256_maskz_loadu_epi16(some, from);
      if constexpr (kStorage == DType::kFloat16) return {_mm512_cvtph_ps(words)};
      return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16))};
    } else {
      const std::uint8_t* from = static_cast<const std::uint8_t*>(row) + first;
      const __m128i bytes =
          whole ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)) : _mm_maskz_loadu_epi8(some, from);
      if constexpr (kStorage == DType::kInt8) return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
      if constexpr (kStorage == DType::kFloat8E5M2) {  // the upper half of a float16
        return {_mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(bytes), 8))};
      }
      return {e4m3_to_floats(bytes)};
    }
  }
  QUIRE_INLINE static void prefetch(const void* address) {
    _mm_prefetch(static_cast<const char*>(address), _MM_HINT_T1);
  }

 private:
  // The first two steps: each 128-bit quarter of every four registers becomes its own transpose.
  template <int kCount>
  QUIRE_INLINE static void transpose_quarters(__m512* r) {
#pragma GCC unroll 4
    for (int i = 0; i < kCount; i += 4) {
      const __m512 low01 = _mm512_unpacklo_ps(r[i], r[i + 1]);
      const __m512 high01 = _mm512_unpackhi_ps(r[i], r[i + 1]);
      const __m512 low23 = _mm512_unpacklo_ps(r[i + 2], r[i + 3]);
      const __m512 high23 = _mm512_unpackhi_ps(r[i + 2], r[i + 3]);
      r[i] = unpack_low(low01, low23);
      r[i + 1] = unpack_high(low01, low23);
      r[i + 2] = unpack_low(high01, high23);
      r[i + 3] = unpack_high(high01, high23);
    }
  }
  QUIRE_INLINE static __m512 unpack_low(__m512 a, __m512 b) {
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  }
  QUIRE_INLINE static __m512 unpack_high(__m512 a, __m512 b) {
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  }
  // Without denormal floats on the way, so that a caller's flush-to-zero mode changes nothing.
  QUIRE_INLINE static __m512 e4m3_to_floats(__m128i bytes) {
    const __m512i code = _mm512_cvtepu8_epi32(bytes);
    const __m512i magnitude = _mm512_and_si512(code, _mm512_set1_epi32(0x7f));
    const __m512i sign = _mm512_slli_epi32(_mm512_and_si512(code, _mm512_set1_epi32(0x80)), 24);
    const __m512 small = _mm512_mul_ps(_mm512_cvtepi32_ps(magnitude), _mm512_set1_ps(0x1p-9f));
    const __m512i large = _mm512_add_epi32(_mm512_slli_epi32(magnitude, 20), _mm512_set1_epi32(120 << 23));
    __m512i bits = _mm512_mask_blend_epi32(_mm512_cmplt_epi32_mask(magnitude, _mm512_set1_epi32(8)), large,
                                           _mm512_castps_si512(small));
    bits = _mm512_mask_blend_epi32(_mm512_cmpeq_epi32_mask(magnitude, _mm512_set1_epi32(0x7f)), bits,
                                   _mm512_set1_epi32(0x7fc00000));
    return _mm512_castsi512_ps(_mm512_or_si512(bits, sign));
  }
};

using F32x16 = Avx512::F;
using I32x16 = Avx512::I;
using M32x16 = Avx512::M;
QUIRE_INLINE F32x16 operator+(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
QUIRE_INLINE F32x16 operator-(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
QUIRE_INLINE F32x16 operator*(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
QUIRE_INLINE F32x16 operator/(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
QUIRE_INLINE F32x16 operator-(F32x16 a) { return {_mm512_xor_ps(a.v, _mm512_set1_ps(-0.0f))}; }
QUIRE_INLINE I32x16 operator+(I32x16 a, std::int32_t b) { return {_mm512_add_epi32(a.v, _mm512_set1_epi32(b))}; }
QUIRE_INLINE I32x16 operator-(I32x16 a, std::int32_t b) { return {_mm512_sub_epi32(a.v, _mm512_set1_epi32(b))}; }
QUIRE_INLINE M32x16 operator<(I32x16 a, std::int32_t b) { return {_mm512_cmplt_epi32_mask(a.v, _mm512_set1_epi32(b))}; }
QUIRE_INLINE M32x16 operator<=(I32x16 a, std::int32_t b) {
  return {_mm512_cmple_epi32_mask(a.v, _mm512_set1_epi32(b))};
}
QUIRE_INLINE M32x16 operator>(I32x16 a, std::int32_t b) { return {_mm512_cmpgt_epi32_mask(a.v, _mm512_set1_epi32(b))}; }
QUIRE_INLINE M32x16 operator>=(I32x16 a, std::int32_t b) {
  return {_mm512_cmpge_epi32_mask(a.v, _mm512_set1_epi32(b))};
}
QUIRE_INLINE M32x16 operator&(M32x16 a, M32x16 b) { return {static_cast<__mmask16>(a.v & b.v)}; }
QUIRE_INLINE M32x16 operator|(M32x16 a, M32x16 b) { return {static_cast<__mmask16>(a.v | b.v)}; }
QUIRE_INLINE M32x16 operator!(M32x16 a) { return {static_cast<__mmask16>(~a.v)}; }

#if !defined(__AVX512BF16__)
using Simd = Avx512;
#endif

}  // namespace
}  // namespace quire::cpu
