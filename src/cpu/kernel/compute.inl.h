// The two forms of the matrix products: float32, and pairs of bfloat16 with float32 sums.
#pragma once

#include "cpu/kernel_table.h"

namespace quire::cpu {
namespace {

struct Float32 {
  using F = Simd::F;
  static constexpr int kPerDword = 1;  // elements that a dword holds
  static constexpr int kWeightDwords = kTileKeys;

  QUIRE_INLINE static F multiply_add(F a, F b, F c) { return Simd::fma(a, b, c); }
  template <DType kStorage>
  QUIRE_INLINE static F load(const void* row, std::int64_t dword, std::int64_t size) {
    return Simd::load_as_floats<kStorage>(row, dword, size - dword);
  }
  // Stores vectors of floats as elements.
  QUIRE_INLINE static void store(float* to, const F* values, int vectors) {
    for (int v = 0; v < vectors; ++v) Simd::store(to + v * Simd::kLanes, values[v]);
  }
};

// Instantiated only where the ISA has the instruction.
template <class Isa>
struct BFloat16Of {
  using F = typename Isa::F;
  static constexpr int kPerDword = 2;
  static constexpr int kLanes = Isa::kLanes;
  static constexpr int kWeightDwords = kTileKeys / 2;

  QUIRE_INLINE static F multiply_add(F a, F b, F c) { return Isa::dot_pairs(a, b, c); }
  template <DType kStorage>
  QUIRE_INLINE static F load(const void* row, std::int64_t dword, std::int64_t size) {
    return Isa::template load_as_pairs<kStorage>(row, 2 * dword, size - 2 * dword);
  }
  QUIRE_INLINE static void store(float* to, const F* values, int vectors) {
    for (int v = 0; v < vectors; v += 2) Isa::store_bf16(to + v / 2 * Isa::kLanes, values[v], values[v + 1]);
  }
  QUIRE_INLINE static void interleave(F a, F b, F& low, F& high) { Isa::interleave_pairs(a, b, low, high); }
};
using BFloat16 = BFloat16Of<Simd>;

}  // namespace
}  // namespace quire::cpu
