// The vocabulary of AVX-512 with AVX512_BF16: the same lanes, and products of bfloat16 pairs.
#pragma once

#include "cpu/simd/avx512.h"

namespace quire::cpu {
namespace {

// bfloat16 of the e4m3 magnitudes 0 .. 127, byte by byte.
struct E4M3Table {
  std::uint8_t low[128];
  std::uint8_t high[128];
};
constexpr std::uint32_t bf16_of_e4m3(std::uint32_t magnitude) {
  const std::uint32_t exponent = magnitude >> 3;
  const std::uint32_t mantissa = magnitude & 7u;
  if (magnitude == 0x7f) return 0x7fc0u;
  if (exponent > 0) return ((exponent + 120u) << 7) | (mantissa << 4);
  if (mantissa == 0) return 0;
  const std::uint32_t top = mantissa >= 4 ? 2 : mantissa >= 2 ? 1 : 0;  // mantissa * 2^-9
  return ((127u - 9u + top) << 7) | ((mantissa << (7 - top)) & 0x7fu);
}
constexpr E4M3Table make_e4m3_table() {
  E4M3Table table{};
  for (std::uint32_t magnitude = 0; magnitude < 128; ++magnitude) {
    table.low[magnitude] = static_cast<std::uint8_t>(bf16_of_e4m3(magnitude) & 0xffu);
    table.high[magnitude] = static_cast<std::uint8_t>(bf16_of_e4m3(magnitude) >> 8);
  }
  return table;
}
alignas(64) constexpr E4M3Table kE4M3Table = make_e4m3_table();

struct Simd : Avx512 {
  static constexpr bool kHasBf16 = true;

  // c + a0 * b0 + a1 * b1 for the pair of bfloat16 in each lane. The instruction takes denormal inputs as zero and
  // flushes denormal results, whatever the caller's rounding mode.
  QUIRE_INLINE static F dot_pairs(F a, F b, F c) {
    return {_mm512_dpbf16_ps(c.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
  }
  // Rounds 32 floats to bfloat16, `low` first, and stores them.
  QUIRE_INLINE static void store_bf16(float* to, F low, F high) {
    _mm512_storeu_ps(to, reinterpret_cast<__m512>(_mm512_cvtne2ps_pbh(high.v, low.v)));
  }
  // Lane i of `low` holds elements i of a and b, `high` the same of elements 16 + i.
  QUIRE_INLINE static void interleave_pairs(F a, F b, F& low, F& high) {
    const __m512i first = _mm512_castps_si512(a.v);
    const __m512i second = _mm512_castps_si512(b.v);
    low.v = _mm512_castsi512_ps(_mm512_permutex2var_epi16(first, interleave_index(0), second));
    high.v = _mm512_castsi512_ps(_mm512_permutex2var_epi16(first, interleave_index(16), second));
  }

  // 32 elements of a row from index `first` as bfloat16, of which `count` exist; the rest is 0. All storage types here
  // are exact in bfloat16.
  template <DType kStorage>
  QUIRE_INLINE static F load_as_pairs(const void* row, std::int64_t first, std::int64_t count) {
    const bool whole = count >= 2 * kLanes;
    const std::uint32_t some = whole ? ~0u : (1u << count) - 1u;
    if constexpr (kStorage == DType::kBFloat16) {
      const std::uint16_t* from = static_cast<const std::uint16_t*>(row) + first;
      return {_mm512_castsi512_ps(whole ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi16(some, from))};
    } else {
      const std::uint8_t* from = static_cast<const std::uint8_t*>(row) + first;
      const __m256i bytes =
          whole ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)) : _mm256_maskz_loadu_epi8(some, from);
      if constexpr (kStorage == DType::kFloat8E4M3) return {_mm512_castsi512_ps(e4m3_to_bf16(bytes))};
      const __m128i low = _mm256_castsi256_si128(bytes);
      const __m128i high = _mm256_extracti128_si256(bytes, 1);
      if constexpr (kStorage == DType::kInt8) {
        return narrow(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(low)), _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(high)));
      }
      return narrow(_mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(low), 8)),
                    _mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(high), 8)));
    }
  }

 private:
  QUIRE_INLINE static F narrow(__m512 low, __m512 high) {
    return {reinterpret_cast<__m512>(_mm512_cvtne2ps_pbh(high, low))};
  }
  QUIRE_INLINE static __m512i interleave_index(int first) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i low = _mm512_add_epi32(lanes, _mm512_set1_epi32(first));
    return _mm512_or_si512(low, _mm512_slli_epi32(_mm512_add_epi32(low, _mm512_set1_epi32(32)), 16));
  }
  // Both bytes of each bfloat16 come out of tables over the 127 magnitudes, so subnormals and NaN are exact too.
  QUIRE_INLINE static __m512i e4m3_to_bf16(__m256i bytes) {
    const __m512i code = _mm512_cvtepu8_epi16(bytes);
    const __m512i twice = _mm512_or_si512(code, _mm512_slli_epi16(code, 8));
    const __m512i low =
        _mm512_permutex2var_epi8(_mm512_load_si512(kE4M3Table.low), twice, _mm512_load_si512(kE4M3Table.low + 64));
    const __m512i high =
        _mm512_permutex2var_epi8(_mm512_load_si512(kE4M3Table.high), twice, _mm512_load_si512(kE4M3Table.high + 64));
    const __m512i magnitude = _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaaull, low, high);
    // magnitude | (twice & 0x8000)
    return _mm512_ternarylogic_epi64(magnitude, twice, _mm512_set1_epi16(static_cast<short>(0x8000)), 0xf8);
  }
};

}  // namespace
}  // namespace quire::cpu
