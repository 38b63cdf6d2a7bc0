// The matrix product under both halves of attention: rows of `a` are broadcast dword by dword against vectors of `b`.
//
// Cost: rows * steps * columns multiply-adds of dwords; a register tile of kRowBlock rows and kVectorBlock vectors does
// 24 of them for 4 vector loads and 6 broadcasts (AVX-512), so it is bound by the multiply-add units as long as `b` is
// in the first two cache levels. Each output is one chain over k in ascending order, whatever the tile, so its bits do
// not depend on the rows it is computed with.
#pragma once

#include "cpu/kernel_table.h"

namespace quire::cpu {
namespace {

template <class C, int kRows, int kVectors>
QUIRE_INLINE void gemm_tile(const GemmTask& task, std::int32_t row, std::int32_t column) {
  constexpr int kLanes = Simd::kLanes;
  const float* a = task.a + row * task.a_stride;
  const float* b = task.b + column;
  float* out = task.out + row * task.out_stride + column;
  const std::int64_t a_stride = task.a_stride;
  const std::int64_t b_stride = task.b_stride;
  Simd::F sum[kRows][kVectors];
  if (task.rescale == nullptr) {
#pragma GCC unroll 6
    for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
      for (int n = 0; n < kVectors; ++n) sum[m][n] = Simd::constant(0.0);
    }
  } else {
#pragma GCC unroll 6
    for (int m = 0; m < kRows; ++m) {
      const Simd::F factor = Simd::broadcast(task.rescale + row + m);
#pragma GCC unroll 4
      for (int n = 0; n < kVectors; ++n) sum[m][n] = Simd::load(out + m * task.out_stride + n * kLanes) * factor;
    }
  }
  for (std::int32_t k = 0; k < task.steps; ++k) {
    Simd::F line[kVectors];
#pragma GCC unroll 4
    for (int n = 0; n < kVectors; ++n) line[n] = Simd::load(b + n * kLanes);
#pragma GCC unroll 6
    for (int m = 0; m < kRows; ++m) {
      const Simd::F value = Simd::broadcast(a + m * a_stride + k);
#pragma GCC unroll 4
      for (int n = 0; n < kVectors; ++n) sum[m][n] = C::multiply_add(value, line[n], sum[m][n]);
    }
    b += b_stride;
  }
#pragma GCC unroll 6
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < kVectors; ++n) Simd::store(out + m * task.out_stride + n * kLanes, sum[m][n]);
  }
}

// All columns of kRows rows.
template <class C, int kRows>
void gemm_rows(const GemmTask& task, std::int32_t row) {
  constexpr std::int32_t kBlock = Simd::kVectorBlock;
  const std::int32_t vectors = (task.columns + Simd::kLanes - 1) / Simd::kLanes;
  const std::int32_t whole = vectors / kBlock * kBlock;
  for (std::int32_t v = 0; v < whole; v += kBlock) gemm_tile<C, kRows, kBlock>(task, row, v * Simd::kLanes);
  const std::int32_t rest = vectors - whole;
  const std::int32_t column = whole * Simd::kLanes;
  if constexpr (Simd::kVectorBlock > 2) {
    if (rest == 3) gemm_tile<C, kRows, 3>(task, row, column);
    if (rest == 2) gemm_tile<C, kRows, 2>(task, row, column);
  }
  if (rest == 1) gemm_tile<C, kRows, 1>(task, row, column);
}

// Rows in tiles of nearly equal height, none above kRowBlock.
template <class C>
void gemm_of(const GemmTask& task) {
  std::int32_t row = 0;
  while (row < task.rows) {
    const std::int32_t left = task.rows - row;
    const std::int32_t tiles = (left + Simd::kRowBlock - 1) / Simd::kRowBlock;
    const std::int32_t height = (left + tiles - 1) / tiles;
    if (height == 1) gemm_rows<C, 1>(task, row);
    if (height == 2) gemm_rows<C, 2>(task, row);
    if (height == 3) gemm_rows<C, 3>(task, row);
    if constexpr (Simd::kRowBlock > 3) {
      if (height == 4) gemm_rows<C, 4>(task, row);
      if (height == 5) gemm_rows<C, 5>(task, row);
      if (height == 6) gemm_rows<C, 6>(task, row);
    }
    row += height;
  }
}

}  // namespace
}  // namespace quire::cpu
