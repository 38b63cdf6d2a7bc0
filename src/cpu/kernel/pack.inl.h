// Packing of a tile's keys and values into the operand layouts of the matrix products.
//
// Cost: a tile of 64 keys and 128 elements reads 16 KB of bfloat16 rows (wherever the page table has put them) and
// writes 16 KB that stays in the first-level cache. Keys are a transpose of dwords, 4 shuffles a vector; values an
// interleave of pairs, 1 shuffle a vector. In prefill a pack serves all rows of a chunk, in decode it runs in the
// shadow of the reads, for which it serves the queue of the next tile's rows.
#pragma once

#include "cpu/kernel/prefetch.inl.h"

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

// Vectors that make up a line of a row.
template <class Isa, class C, DType kStorage>
constexpr int loads_a_line() {
  constexpr int kLoadBytes = C::kPerDword * Isa::kLanes * static_cast<int>(dtype_bytes(kStorage));
  return kLoadBytes < kLineBytes ? static_cast<int>(kLineBytes) / kLoadBytes : 1;
}

// The dwords of a group of keys from `dword` on, keys side by side. All of them are there.
template <class Isa, class C, DType kStorage>
QUIRE_INLINE void transpose_keys(const PackTask& task, std::int32_t key, std::int64_t dword, float* out) {
  constexpr int kLanes = Isa::kLanes;
  const void* const* row = task.rows->row + key;
  typename Isa::F r[kLanes];
  if constexpr (Isa::kTransposedLoads > 0 && C::kPerDword * dtype_bytes(kStorage) == 4) {
    constexpr int kPart = Isa::kTransposedLoads;
#pragma GCC unroll 2
    for (int part = 0; part < kLanes; part += kPart) {
      Isa::load_transposed(row, task.offset + (dword + part) * 4, r, [&] {
        serve_prefetch(task.prefetch);
        serve_prefetch(task.prefetch);
      });
#pragma GCC unroll 8
      for (int i = 0; i < kPart; ++i) Isa::store(out + (part + i) * kTileKeys, r[i]);
    }
  } else {
    constexpr int kLoads = loads_a_line<Isa, C, kStorage>();
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (i % kLoads == 0) serve_prefetch(task.prefetch);
      r[i] = C::template load<kStorage>(static_cast<const char*>(row[i]) + task.offset, dword, task.size);
    }
    Isa::transpose(r);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) Isa::store(out + i * kTileKeys, r[i]);
  }
}

// out[dword][key], kTileKeys keys; vectors of keys at or after rows.end are left as they are.
template <class C, DType kStorage>
void pack_keys_of(const PackTask& task) {
  constexpr int kLanes = Simd::kLanes;
  const TileRows& rows = *task.rows;
  const std::int64_t dwords = (task.size + C::kPerDword - 1) / C::kPerDword;
  for (std::int32_t key = 0; key < rows.end; key += kLanes) {
    const bool all_there = key >= rows.begin && key + kLanes <= rows.end;
    for (std::int64_t dword = 0; dword < dwords; dword += kLanes) {
      float* out = task.out + dword * kTileKeys + key;
      if (all_there && (dword + kLanes) * C::kPerDword <= task.size) {
        transpose_keys<Simd, C, kStorage>(task, key, dword, out);
        continue;
      }
      Simd::F r[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        r[i] = load_or_zero<C, kStorage>(at_offset(rows.row[key + i], task.offset), dword, task.size);
      }
      Simd::transpose(r);
      for (int i = 0; i < kLanes; ++i) Simd::store(out + i * kTileKeys, r[i]);
    }
  }
}

// out[key][column] in float32; columns padded with zeros.
template <DType kStorage>
QUIRE_INLINE void pack_value_rows(const PackTask& task, std::int32_t padded) {
  const TileRows& rows = *task.rows;
  const std::int32_t lines_of_16 = lines_of(16, task.size, kStorage);
  for (std::int32_t key = 0; key < rows.end; ++key) {
    if (key % 16 == 0) serve_prefetch(task.prefetch, lines_of_16);
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
  const std::int32_t lines_of_16 = lines_of(16, task.size, kStorage);
  for (std::int32_t key = 0; key < rows.end; key += 2) {
    if (key % 16 == 0) serve_prefetch(task.prefetch, lines_of_16);
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
