// Packing of a tile's keys and values into the operand layouts of the matrix products.
//
// Cost: a tile of 64 keys and 128 elements reads 16 KB of bfloat16 rows (wherever the page table has put them) and
// writes 16 KB that stays in the first-level cache. Keys are a transpose of dwords, 4 shuffles a vector; values an
// interleave of pairs, 1 shuffle a vector. In prefill a pack serves all rows of a chunk, in decode it runs in the
// shadow of the reads, for which it serves the queue of the next tile's rows.
#pragma once

#include "cpu/kernel_table.h"

namespace quire::cpu {
namespace {

// A vector of a row's elements from dword `dword`, zeros where the row or its elements are not there.
template <class C, DType kStorage>
QUIRE_INLINE Simd::F load_or_zero(const void* row, std::int64_t dword, std::int64_t size) {
  if (row == nullptr || dword * C::kPerDword >= size) return Simd::constant(0.0);
  return C::template load<kStorage>(row, dword, size);
}

QUIRE_INLINE const void* at_offset(const void* row, std::int64_t bytes) {
  return row == nullptr ? nullptr : static_cast<const char*>(row) + bytes;
}

// Asks for the queue's next few rows. In bursts: they keep more reads in flight than the same requests spread evenly.
inline void serve_prefetch(PrefetchQueue* queue) {
  if (queue == nullptr) return;
  for (std::int32_t i = 0; i < queue->rows_a_call && queue->array < queue->num_arrays; ++i) {
    const std::int32_t array = queue->array;
    const TileRows& rows = *queue->arrays[array];
    const char* row = static_cast<const char*>(at_offset(rows.row[queue->key], queue->head * queue->head_bytes[array]));
    const std::int64_t bytes = row == nullptr ? 0 : queue->row_bytes[array];
    for (std::int64_t at = 0; at < bytes; at += 64) Simd::prefetch(row + at);
    if (++queue->key < kTileKeys) continue;
    queue->key = 0;
    if (++queue->head < queue->num_heads) continue;
    queue->head = 0;
    ++queue->array;
  }
}

// out[dword][key], kTileKeys keys; vectors of keys at or after rows.end are left as they are.
template <class C, DType kStorage>
void pack_keys_of(const PackTask& task) {
  constexpr int kLanes = Simd::kLanes;
  const TileRows& rows = *task.rows;
  const std::int64_t dwords = (task.size + C::kPerDword - 1) / C::kPerDword;
  for (std::int32_t key = 0; key < rows.end; key += kLanes) {
    if (key % 16 == 0) serve_prefetch(task.prefetch);
    const void* address[kLanes];
    for (int i = 0; i < kLanes; ++i) address[i] = at_offset(rows.row[key + i], task.offset);
    const bool all_there = key >= rows.begin && key + kLanes <= rows.end;
    for (std::int64_t dword = 0; dword < dwords; dword += kLanes) {
      Simd::F r[kLanes];
      const bool whole = (dword + kLanes) * C::kPerDword <= task.size;
      if (all_there && whole) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) r[i] = C::template load<kStorage>(address[i], dword, task.size);
      } else {
        for (int i = 0; i < kLanes; ++i) r[i] = load_or_zero<C, kStorage>(address[i], dword, task.size);
      }
      Simd::transpose(r);
      float* out = task.out + dword * kTileKeys + key;
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) Simd::store(out + i * kTileKeys, r[i]);
    }
  }
}

// out[key][column] in float32; columns padded with zeros.
template <DType kStorage>
QUIRE_INLINE void pack_value_rows(const PackTask& task, std::int32_t padded) {
  const TileRows& rows = *task.rows;
  for (std::int32_t key = 0; key < rows.end; ++key) {
    if (key % 16 == 0) serve_prefetch(task.prefetch);
    const void* row = at_offset(rows.row[key], task.offset);
    float* out = task.out + key * task.out_stride;
    for (std::int32_t column = 0; column < padded; column += Simd::kLanes) {
      Simd::store(out + column, load_or_zero<Float32, kStorage>(row, column, task.size));
    }
  }
}

// out[key pair][column][2] in bfloat16; columns padded with zeros.
template <class Isa, DType kStorage>
QUIRE_INLINE void pack_value_pairs(const PackTask& task, std::int32_t padded) {
  constexpr std::int32_t kLanes = Isa::kLanes;
  using C = BFloat16Of<Isa>;
  const TileRows& rows = *task.rows;
  for (std::int32_t key = 0; key < rows.end; key += 2) {
    if (key % 16 == 0) serve_prefetch(task.prefetch);
    const void* first = at_offset(rows.row[key], task.offset);
    const void* second = at_offset(rows.row[key + 1], task.offset);
    const bool both = first != nullptr && second != nullptr;
    float* out = task.out + key / 2 * task.out_stride;
    std::int32_t column = 0;
    typename Isa::F low;
    typename Isa::F high;
    for (; both && column + 2 * kLanes <= task.size; column += 2 * kLanes) {
      Isa::interleave_pairs(C::template load<kStorage>(first, column / 2, task.size),
                            C::template load<kStorage>(second, column / 2, task.size), low, high);
      Isa::store(out + column, low);
      Isa::store(out + column + kLanes, high);
    }
    for (; column < padded; column += 2 * kLanes) {
      Isa::interleave_pairs(load_or_zero<C, kStorage>(first, column / 2, task.size),
                            load_or_zero<C, kStorage>(second, column / 2, task.size), low, high);
      Isa::store(out + column, low);
      if (column + kLanes < padded) Isa::store(out + column + kLanes, high);
    }
  }
}

template <class C, DType kStorage>
void pack_values_of(const PackTask& task) {
  const std::int32_t padded = (task.size + kColumnPad - 1) / kColumnPad * kColumnPad;
  if constexpr (C::kPerDword == 1) {
    pack_value_rows<kStorage>(task, padded);
  } else {
    pack_value_pairs<Simd, kStorage>(task, padded);
  }
}

// Vectors of one step's values: of one key in float32, of a pair of keys in bfloat16.
template <class C, DType kStorage, int kVectors>
QUIRE_INLINE void load_values(const PackTask& task, std::int32_t step, std::int32_t column, Simd::F* line) {
  const TileRows& rows = *task.rows;
  if constexpr (C::kPerDword == 1) {
    const void* row = at_offset(rows.row[step], task.offset);
#pragma GCC unroll 4
    for (int n = 0; n < kVectors; ++n) {
      line[n] = load_or_zero<C, kStorage>(row, column + n * Simd::kLanes, task.size);
    }
  } else {
    const void* first = at_offset(rows.row[2 * step], task.offset);
    const void* second = at_offset(rows.row[2 * step + 1], task.offset);
#pragma GCC unroll 2
    for (int n = 0; n < kVectors; n += 2) {
      const std::int64_t dword = (column + n * C::kLanes) / 2;
      C::interleave(load_or_zero<C, kStorage>(first, dword, task.size),
                    load_or_zero<C, kStorage>(second, dword, task.size), line[n], line[n + 1]);
    }
  }
}

template <class C, DType kStorage, int kRows>
QUIRE_INLINE void add_direct_rows(const DirectTask& task, std::int32_t row) {
  constexpr int kLanes = Simd::kLanes;
  constexpr int kVectors = Simd::kVectorBlock;
  const std::int32_t steps = (task.values.rows->end + C::kPerDword - 1) / C::kPerDword;
  const std::int64_t stride = task.values.out_stride;
  for (std::int32_t column = 0; column < task.values.size; column += kVectors * kLanes) {
    float* out = task.values.out + row * stride + column;
    const float* weights = task.weights + row * C::kWeightDwords;
    Simd::F sum[kRows][kVectors];
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) {
      const Simd::F factor = Simd::broadcast(task.rescale + row + m);
#pragma GCC unroll 4
      for (int n = 0; n < kVectors; ++n) sum[m][n] = Simd::load(out + m * stride + n * kLanes) * factor;
    }
    for (std::int32_t step = 0; step < steps; ++step) {
      if (step * C::kPerDword % 32 == 0) serve_prefetch(task.values.prefetch);
      Simd::F line[kVectors];
      load_values<C, kStorage, kVectors>(task.values, step, column, line);
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

// Copies a row into dwords of the compute type; the last dword's missing element is zero.
template <class C, DType kStorage>
void copy_row_of(const void* row, std::int32_t size, float* out) {
  const std::int64_t dwords = (size + C::kPerDword - 1) / C::kPerDword;
  std::int64_t dword = 0;
  for (; dword + Simd::kLanes <= dwords; dword += Simd::kLanes) {
    Simd::store(out + dword, C::template load<kStorage>(row, dword, size));
  }
  if (dword == dwords) return;
  float rest[Simd::kLanes];
  Simd::store(rest, C::template load<kStorage>(row, dword, size));
  for (std::int64_t i = 0; dword < dwords; ++i, ++dword) out[dword] = rest[i];
}

using PackFunction = void (*)(const PackTask&);
using DirectFunction = void (*)(const DirectTask&);
using CopyFunction = void (*)(const void*, std::int32_t, float*);

// The functions of one storage type; null where it has none.
struct Codec {
  PackFunction keys = nullptr;
  PackFunction values = nullptr;
  DirectFunction add_direct = nullptr;
  CopyFunction copy = nullptr;
};

template <class C, DType kStorage>
QUIRE_INLINE Codec codec_of() {
  return {pack_keys_of<C, kStorage>, pack_values_of<C, kStorage>, add_direct_of<C, kStorage>, copy_row_of<C, kStorage>};
}

QUIRE_INLINE Codec codec(Compute compute, DType storage) {
  if constexpr (Simd::kHasBf16) {
    if (compute == Compute::kBFloat16) {
      if (storage == DType::kBFloat16) return codec_of<BFloat16, DType::kBFloat16>();
      if (storage == DType::kFloat8E4M3) return codec_of<BFloat16, DType::kFloat8E4M3>();
      if (storage == DType::kFloat8E5M2) return codec_of<BFloat16, DType::kFloat8E5M2>();
      return codec_of<BFloat16, DType::kInt8>();
    }
  }
  if (storage == DType::kFloat16) return codec_of<Float32, DType::kFloat16>();
  if (storage == DType::kBFloat16) return codec_of<Float32, DType::kBFloat16>();
  if (storage == DType::kFloat8E4M3) return codec_of<Float32, DType::kFloat8E4M3>();
  if (storage == DType::kFloat8E5M2) return codec_of<Float32, DType::kFloat8E5M2>();
  if (storage == DType::kInt8) return codec_of<Float32, DType::kInt8>();
  return codec_of<Float32, DType::kFloat32>();
}

// Bit k: packed values of key k hold an infinity or a NaN.
template <class C>
std::uint64_t find_non_finite(const float* values, std::int32_t columns, std::int32_t keys) {
  std::uint64_t found = 0;
  for (std::int32_t step = 0; step * C::kPerDword < keys; ++step) {
    Simd::M high = Simd::mask_of(0);
    Simd::M low = Simd::mask_of(0);
    for (std::int32_t column = 0; column < columns; column += Simd::kLanes) {
      const Simd::I bits = Simd::as_int(Simd::load(values + static_cast<std::int64_t>(step) * columns + column));
      high = high | (Simd::bit_and(bits, 0x7f800000) > 0x7f7fffff);
      if constexpr (C::kPerDword == 2) low = low | (Simd::bit_and(bits, 0x7f80) > 0x7f7f);
    }
    if (Simd::bits_of(high) != 0) found |= 1ull << (step * C::kPerDword + C::kPerDword - 1);
    if (Simd::bits_of(low) != 0) found |= 1ull << (step * C::kPerDword);
  }
  return found;
}

// `to` becomes `from` with the values of the keys in `bad` zeroed.
template <class C>
void copy_without(std::uint64_t bad, const float* from, std::int32_t columns, std::int32_t keys, float* to) {
  for (std::int32_t step = 0; step * C::kPerDword < keys; ++step) {
    std::int32_t mask = -1;
    if constexpr (C::kPerDword == 1) {
      if ((bad >> step) & 1u) mask = 0;
    } else {
      if ((bad >> (2 * step)) & 1u) mask &= static_cast<std::int32_t>(0xffff0000u);
      if ((bad >> (2 * step + 1)) & 1u) mask &= 0x0000ffff;
    }
    const std::int64_t row = static_cast<std::int64_t>(step) * columns;
    for (std::int32_t column = 0; column < columns; column += Simd::kLanes) {
      const Simd::I bits = Simd::bit_and(Simd::as_int(Simd::load(from + row + column)), mask);
      Simd::store(to + row + column, Simd::as_float(bits));
    }
  }
}

}  // namespace
}  // namespace quire::cpu
