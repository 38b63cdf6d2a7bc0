// Products of few rows (decode) with keys and values that are read where they lie, without packed copies.
//
// Cost: a tile of 64 keys and 128 bfloat16 elements is 16 KB of keys and as much of values. Four rows need 1,024
// products for each, one a clock; the keys' transpose takes 768 shuffles, which share a unit with the products, the
// values' pairs 256. Both loops read a line every seven to eight clocks, all the way through, and ask for one of the
// next tile's as often: where heads are the outer dimension of a page (HND) that hides all but the reads themselves.
// The chains of each output are those of the packed products, so the bits are too.
#pragma once

#include "cpu/kernel/pack.inl.h"

namespace quire::cpu {
namespace {

// dot_keys serves one line in this many less than it reads; the softmax that follows serves those.
inline constexpr std::int32_t kDotLeavesLines = 8;

// The dot products of kRows rows with 32 keys, two groups side by side so that enough chains are under way.
template <class Isa, class C, int kRows>
QUIRE_INLINE void dot_keys(const DotTask& task, std::int32_t row, std::int32_t key) {
  constexpr int kPart = Isa::kTransposedLoads;
  const void* const* rows = task.keys.rows->row + key;
  const float* query = task.query + row * task.query_stride;
  PrefetchQueue* prefetch = row > 0 ? nullptr : task.keys.prefetch;
  typename Isa::F sum[2][kRows];
#pragma GCC unroll 4
  for (int m = 0; m < kRows; ++m) sum[0][m] = sum[1][m] = Isa::constant(0.0);
  for (std::int32_t dword = 0; dword < task.keys.size / C::kPerDword; dword += kPart) {
    typename Isa::F keys[2][kPart];
    const std::int64_t offset = task.keys.offset + dword * 4;
    Isa::load_transposed(rows, offset, keys[0], [&] { serve_prefetch(prefetch); });
    Isa::load_transposed(rows + Isa::kLanes, offset, keys[1], [&] { serve_prefetch(prefetch); });
#pragma GCC unroll 8
    for (int i = 0; i < kPart; ++i) {
      if (i % 4 != 3) serve_prefetch(prefetch);
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m) {
        const typename Isa::F value = Isa::broadcast(query + m * task.query_stride + dword + i);
        sum[0][m] = C::multiply_add(value, keys[0][i], sum[0][m]);
        sum[1][m] = C::multiply_add(value, keys[1][i], sum[1][m]);
      }
    }
  }
  float* out = task.keys.out + row * kTileKeys + key;
#pragma GCC unroll 4
  for (int m = 0; m < kRows; ++m) {
    Isa::store(out + m * kTileKeys, sum[0][m]);
    Isa::store(out + m * kTileKeys + Isa::kLanes, sum[1][m]);
  }
}

// Dot products of all rows with a whole tile of keys.
template <class Isa, class C>
void dot_direct_of(const DotTask& task) {
  for (std::int32_t key = 0; key < kTileKeys; key += 2 * Isa::kLanes) {
    std::int32_t row = 0;
    for (; row + 4 <= task.num_rows; row += 4) dot_keys<Isa, C, 4>(task, row, key);
    for (; row + 2 <= task.num_rows; row += 2) dot_keys<Isa, C, 2>(task, row, key);
    if (row < task.num_rows) dot_keys<Isa, C, 1>(task, row, key);
  }
}

// Vectors of one step's values from byte `offset` of their rows: of one key in float32, of a pair of keys in bfloat16.
// Serves as many lines as it reads.
template <class C, DType kStorage, int kVectors>
QUIRE_INLINE void load_values(const void* const* row, std::int64_t offset, PrefetchQueue* prefetch, Simd::F* line) {
  constexpr std::int64_t kWhole = kTileKeys;  // any size with room for a vector
  constexpr int kLoads = loads_a_line<Simd, C, kStorage>();
  const auto* first = static_cast<const char*>(row[0]) + offset;
  if constexpr (C::kPerDword == 1) {
#pragma GCC unroll 4
    for (int n = 0; n < kVectors; ++n) {
      if (n % kLoads == 0) serve_prefetch(prefetch);
      line[n] = C::template load<kStorage>(first, n * Simd::kLanes, kWhole);
    }
  } else {
    const auto* second = static_cast<const char*>(row[1]) + offset;
#pragma GCC unroll 2
    for (int n = 0; n < kVectors; n += 2) {
      const std::int64_t dword = n * C::kLanes / 2;
      serve_prefetch(prefetch);
      const Simd::F even = C::template load<kStorage>(first, dword, kWhole);
      if (kLoads == 1) serve_prefetch(prefetch);
      C::interleave(even, C::template load<kStorage>(second, dword, kWhole), line[n], line[n + 1]);
    }
  }
}

template <class C, DType kStorage, int kRows>
QUIRE_INLINE void add_direct_rows(const DirectTask& task, std::int32_t row) {
  constexpr int kLanes = Simd::kLanes;
  constexpr int kVectors = Simd::kVectorBlock;
  const std::int64_t stride = task.values.out_stride;
  constexpr std::int32_t kPassColumns = kVectors * kLanes;
  PrefetchQueue* prefetch = row > 0 ? nullptr : task.values.prefetch;
  for (std::int32_t column = 0; column < task.values.size; column += kPassColumns) {
    float* out = task.values.out + row * stride + column;
    const float* weights = task.weights + row * C::kWeightDwords;
    Simd::F sum[kRows][kVectors];
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) {
      const Simd::F factor = Simd::broadcast(task.rescale + row + m);
#pragma GCC unroll 4
      for (int n = 0; n < kVectors; ++n) sum[m][n] = Simd::load(out + m * stride + n * kLanes) * factor;
    }
    const std::int64_t offset = task.values.offset + column * dtype_bytes(kStorage);
    for (std::int32_t step = 0; step < kTileKeys / C::kPerDword; ++step) {
      Simd::F line[kVectors];
      load_values<C, kStorage, kVectors>(task.values.rows->row + step * C::kPerDword, offset, prefetch, line);
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m) {
        const Simd::F weight = Simd::broadcast(weights + m * C::kWeightDwords + step);
#pragma GCC unroll 4
        for (int n = 0; n < kVectors; ++n) sum[m][n] = C::multiply_add(weight, line[n], sum[m][n]);
      }
    }
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
      for (int n = 0; n < kVectors; ++n) Simd::store(out + m * stride + n * kLanes, sum[m][n]);
    }
  }
}

// The matrix product of weights and values without packing: the same chains as through pack_values and the product.
template <class C, DType kStorage>
void add_direct_of(const DirectTask& task) {
  std::int32_t row = 0;
  for (; row + 4 <= task.num_rows; row += 4) add_direct_rows<C, kStorage, 4>(task, row);
  for (; row + 2 <= task.num_rows; row += 2) add_direct_rows<C, kStorage, 2>(task, row);
  if (row < task.num_rows) add_direct_rows<C, kStorage, 1>(task, row);
}

}  // namespace
}  // namespace quire::cpu
