// Loads of the decode kernel: a warp's tiles of 16 keys and their values, through the block table into its ring.
#pragma once

#include "cuda/block/schedule.h"
#include "cuda/ptx/cp_async.h"
#include "cuda/tuning.h"
#include "kv/addressing.h"
#include "variant/number.h"

namespace quire::cuda {

// Where rows of one array start, in units of 16 bytes (4 where rows are aligned to less): page * page + token * token +
// head. The host has checked that the sum stays below 2^32.
struct RowUnits {
  std::uint32_t page = 0;
  std::uint32_t token = 0;
  std::uint32_t head = 0;

  __device__ static RowUnits of(const KVRows& rows, std::int32_t kv_head, int element_bytes, int unit_shift) {
    const auto units = [&](std::int64_t stride) {
      return static_cast<std::uint32_t>(stride * element_bytes >> unit_shift);
    };
    return {units(rows.page_stride), units(rows.token_stride), units(rows.head_stride * kv_head)};
  }
  __device__ std::uint32_t at(std::uint32_t page_id, std::uint32_t token_id) const {
    return page_id * page + token_id * token + head;
  }
};

// Keys and values of a segment, and the warp's ring of tiles in shared memory.
template <class Shape>
struct DecodeLoader {
  const KVSource* kv;
  FaultRecord* record;
  std::uint32_t ring;  // this warp's
  std::int32_t seq;
  std::int32_t kv_head;
  KeyRange keys;             // that may be read
  bool narrow;               // rows are aligned to 4 bytes only
  std::int32_t inline_unit;  // SplitParams::inline_unit
  std::int32_t block_shift;  // of a block size that is a power of two, else -1
  std::int32_t lane;
  RowUnits units[2 * Shape::kStreams];  // keys, values of each stream
  std::uint32_t shift_k = 0;            // where rows with their scales start in their places
  std::uint32_t shift_v = 0;
  std::uint64_t policy = 0;  // of what is read, in L2

  __device__ QUIRE_INLINE void find_units() {
#pragma unroll
    for (int i = 0; i < 2 * Shape::kStreams; ++i) {
      units[i] = RowUnits::of(i % 2 == 0 ? kv->key[i / 2] : kv->value[i / 2], kv_head, Shape::kBytes, narrow ? 2 : 4);
    }
    if constexpr (Shape::kBytes == 1 && Shape::kStreams == 1) {
      if (inline_unit != 0) {
        shift_k = shift_of(kv->key[0], units[0]);
        shift_v = shift_of(kv->value[0], units[1]);
      }
    }
  }

  __device__ std::uint32_t stage(int index) const {
    return ring + static_cast<std::uint32_t>(index * Shape::kStageBytes);
  }

  __device__ QUIRE_INLINE std::uint32_t block_of(std::uint32_t kv_pos) const {
    return block_shift >= 0 ? kv_pos >> block_shift : kv_pos / static_cast<std::uint32_t>(kv->block_size);
  }

  // Whether tiles never straddle pages.
  __device__ QUIRE_INLINE bool has_page_tiles() const { return block_shift >= 4 && kv->block_table != nullptr; }

  __device__ QUIRE_INLINE bool has_key(std::int32_t kv_pos) const { return kv_pos >= keys.begin && kv_pos < keys.end; }

  // The block table's entry for a position that it has room for.
  __device__ QUIRE_INLINE std::int32_t entry_of(std::int32_t kv_pos) const {
    return kv->block_table[static_cast<std::int64_t>(seq) * kv->block_table_stride +
                           block_of(static_cast<std::uint32_t>(kv_pos))];
  }

  // The entry for this lane's key of the tile at `first`; -1 where there is no key.
  __device__ QUIRE_INLINE std::int32_t page_of(std::int32_t first) const {
    const std::int32_t kv_pos = first + lane % Shape::kKeys;
    if (!has_key(kv_pos)) return -1;
    return kv->block_table == nullptr ? 0 : entry_of(kv_pos);
  }

  // Starts the copies of a tile whose block ids page_of gave; rows without a page become zeros.
  __device__ QUIRE_INLINE void load(int index, std::int32_t first, std::int32_t page) const {
    const std::int32_t kv_pos = first + lane % Shape::kKeys;
    bool there = page >= 0;
    std::uint32_t token = 0;
    if (kv->block_table == nullptr) {
      token = static_cast<std::uint32_t>(there ? kv->kv_start[seq] + kv_pos : 0);
    } else {
      const auto position = static_cast<std::uint32_t>(kv_pos);
      token = position - block_of(position) * static_cast<std::uint32_t>(kv->block_size);
      if (!there || page >= kv->num_blocks) {
        if (kv_pos >= keys.begin && kv_pos < keys.end) report(record, Fault::kBlock, seq, page, kv->num_blocks);
        there = false;
      }
    }
    const std::uint32_t to = stage(index);
    const auto page_id = static_cast<std::uint32_t>(page);
    // Sixteen keys of one page are the usual case.
    const bool is_one_page = __all_sync(kFullWarp, there) && block_shift >= 4 && kv->block_table != nullptr;
    const std::uint32_t first_token = token - static_cast<std::uint32_t>(lane % Shape::kKeys);
    if constexpr (Shape::kBytes == 1 && Shape::kStreams == 1) {
      if (inline_unit != 0) {
        if (is_one_page) {
          copy_inline_page<Shape::kD, Shape::kPitchK>(kv->key[0].data, units[0], page_id, first_token, shift_k, to);
          copy_inline_page<Shape::kDv, Shape::kPitchV>(kv->value[0].data, units[1], page_id, first_token, shift_v,
                                                       to + Shape::kKeys * Shape::kPitchK);
        } else {
          copy_inline_any(*this, page_id, token, there, to);
        }
        return;
      }
    }
    if (is_one_page && (Shape::kBytes == 2 || !narrow)) {
#pragma unroll
      for (int stream = 0; stream < Shape::kStreams; ++stream) {
        copy_page<Shape::kD, Shape::kPitchK, Shape::is_swizzled(Shape::kD)>(
            kv->key[stream].data, units[2 * stream], page_id, first_token, to + stream * Shape::kKeys * Shape::kPitchK,
            0);
        copy_page<Shape::kDvPart, Shape::kPitchV, Shape::is_swizzled(Shape::kDv)>(
            kv->value[stream].data, units[2 * stream + 1], page_id, first_token,
            to + Shape::kStreams * Shape::kKeys * Shape::kPitchK, stream * Shape::kDvPart * Shape::kBytes);
      }
    } else {
      copy_any(*this, page_id, token, there, to);
    }
    if constexpr (Shape::kBytes == 1) {
      copy_scales({there ? page : -1, static_cast<std::int64_t>(token)}, to + Shape::kStageBytes - Shape::kScaleBytes);
    }
  }

 private:
  __device__ QUIRE_INLINE std::uint32_t shift_of(const KVRows& rows, const RowUnits& unit) const {
    const auto start = reinterpret_cast<std::uintptr_t>(rows.data) + static_cast<std::uint64_t>(unit.head) * 4;
    return static_cast<std::uint32_t>(start) & static_cast<std::uint32_t>(inline_unit - 1);
  }

  // Sixteen rows of kSize bytes and their scales behind them, which follow each other in one page: the whole chunks of
  // 16 bytes that hold them. Lanes share rows as far as rows divide evenly, and take the chunks that are over in the
  // end.
  template <int kSize, int kPitch>
  __device__ QUIRE_INLINE void copy_inline_page(const void* rows, const RowUnits& unit, std::uint32_t page,
                                                std::uint32_t first_token, std::uint32_t shift,
                                                std::uint32_t to) const {
    constexpr int kChunks = kSize / 16;
    constexpr int kLanes = lanes_of(kChunks);
    constexpr int kRowsAtOnce = 32 / kLanes;
    const std::uint64_t stride = static_cast<std::uint64_t>(unit.token) * 4;
    const std::byte* base =
        static_cast<const std::byte*>(rows) + (static_cast<std::uint64_t>(unit.at(page, first_token)) * 4 - shift);
    const std::byte* from = base + static_cast<std::uint64_t>(lane / kLanes) * stride + lane % kLanes * 16;
#pragma unroll
    for (int i = 0; i < Shape::kKeys; i += kRowsAtOnce) {
#pragma unroll
      for (int k = 0; k < kChunks; k += kLanes) {
        ptx::cp_async_16(to + static_cast<std::uint32_t>((i + lane / kLanes) * kPitch + (k + lane % kLanes) * 16),
                         from + k * 16);
      }
      from += kRowsAtOnce * stride;
    }
    const int last = kChunks + lane % 2;
    if (last < (static_cast<int>(shift) + kSize + 4 + 15) / 16) {
      ptx::cp_async_16(to + static_cast<std::uint32_t>(lane / 2 * kPitch + last * 16),
                       base + static_cast<std::uint64_t>(lane / 2) * stride + last * 16);
    }
  }

  // The same for rows anywhere. Not inlined: few tiles come here.
  __device__ __noinline__ static void copy_inline_any(const DecodeLoader loader, std::uint32_t page,
                                                      std::uint32_t token, bool there, std::uint32_t to) {
    loader.template copy_inline<Shape::kD, Shape::kPitchK>(loader.kv->key[0].data, loader.units[0].at(page, token),
                                                           loader.units[0].head, there, loader.shift_k, to);
    loader.template copy_inline<Shape::kDv, Shape::kPitchV>(loader.kv->value[0].data, loader.units[1].at(page, token),
                                                            loader.units[1].head, there, loader.shift_v,
                                                            to + Shape::kKeys * Shape::kPitchK);
  }

  // As many lanes as divide a row's chunks.
  static constexpr int lanes_of(int chunks) {
    return chunks % 32 == 0 ? 32 : chunks % 16 == 0 ? 16 : chunks % 8 == 0 ? 8 : chunks % 4 == 0 ? 4 : 2;
  }

  // Rows of kSize bytes and their scales behind them, each as the whole chunks of 16 bytes that hold it; two lanes a
  // row. Lane i knows the offset of row i % kKeys; rows that are not there read nothing, at `origin`.
  template <int kSize, int kPitch>
  __device__ QUIRE_INLINE void copy_inline(const void* rows, std::uint32_t offset, std::uint32_t origin, bool there,
                                           std::uint32_t shift, std::uint32_t to) const {
    const int row = lane / 2;
    const bool valid = __shfl_sync(kFullWarp, there, row);
    const std::uint32_t at = __shfl_sync(kFullWarp, offset, row);
    const std::byte* from =
        static_cast<const std::byte*>(rows) + (static_cast<std::uint64_t>(valid ? at : origin) * 4 - shift);
    const int chunks = (static_cast<int>(shift) + kSize + 4 + 15) / 16;
#pragma unroll
    for (int i = 0; i < kPitch / 32; ++i) {
      const int chunk = 2 * i + lane % 2;
      if (chunk < chunks) {
        ptx::cp_async_16(to + static_cast<std::uint32_t>(row * kPitch + chunk * 16), from + chunk * 16, valid);
      }
    }
  }

  // Sixteen rows that follow each other in one page, to byte `column` of their places. As many lanes as divide a row's
  // chunks share a row.
  template <int kSize, int kPitch, bool kSwizzled>
  __device__ QUIRE_INLINE void copy_page(const void* rows, const RowUnits& unit, std::uint32_t page,
                                         std::uint32_t first_token, std::uint32_t to, int column) const {
    constexpr int kChunks = kSize * Shape::kBytes / 16;
    constexpr int kLanes = lanes_of(kChunks);
    static_assert(kChunks % kLanes == 0);
    constexpr int kRowsAtOnce = 32 / kLanes;
    const int row = lane / kLanes;
    const std::byte* from =
        static_cast<const std::byte*>(rows) +
        static_cast<std::uint64_t>(unit.at(page, first_token + static_cast<std::uint32_t>(row))) * 16 +
        lane % kLanes * 16;
    const std::uint64_t step = static_cast<std::uint64_t>(unit.token) * (16 * kRowsAtOnce);
#pragma unroll
    for (int i = 0; i < Shape::kKeys; i += kRowsAtOnce) {
#pragma unroll
      for (int k = 0; k < kChunks; k += kLanes) {
        const int chunk = column / 16 + k + lane % kLanes;
        const int place = kSwizzled ? chunk ^ ((i + row) % 8) : chunk;
        ptx::cp_async_16(to + static_cast<std::uint32_t>((i + row) * kPitch + place * 16), from + k * 16, policy);
      }
      from += step;
    }
  }

  // Rows anywhere, one by one. Not inlined: few tiles come here.
  __device__ __noinline__ static void copy_any(const DecodeLoader loader, std::uint32_t page, std::uint32_t token,
                                               bool there, std::uint32_t to) {
#pragma unroll 1
    for (int stream = 0; stream < Shape::kStreams; ++stream) {
      loader.template copy_rows<Shape::kD, Shape::kPitchK, Shape::is_swizzled(Shape::kD)>(
          loader.kv->key[stream].data, loader.units[2 * stream].at(page, token), there,
          to + static_cast<std::uint32_t>(stream * Shape::kKeys * Shape::kPitchK), 0);
      loader.template copy_rows<Shape::kDvPart, Shape::kPitchV, Shape::is_swizzled(Shape::kDv)>(
          loader.kv->value[stream].data, loader.units[2 * stream + 1].at(page, token), there,
          to + Shape::kStreams * Shape::kKeys * Shape::kPitchK, stream * Shape::kDvPart * Shape::kBytes);
    }
  }

  // Rows of kSize elements to byte `column` of their places; lane i knows the offset of row i % kKeys, in units, and
  // whether it is there.
  template <int kSize, int kPitch, bool kSwizzled>
  __device__ QUIRE_INLINE void copy_rows(const void* rows, std::uint32_t offset, bool there, std::uint32_t to,
                                         int column) const {
    const auto* data = static_cast<const std::byte*>(rows);
    constexpr int kRowBytes = kSize * Shape::kBytes;
    if (Shape::kBytes == 2 || !narrow) {
      constexpr int kChunks = kRowBytes / 16;
#pragma unroll 2
      for (int i = 0; i < Shape::kKeys * kChunks / 32; ++i) {
        const int row = (i * 32 + lane) / kChunks;
        const int chunk = (i * 32 + lane) % kChunks;
        const std::uint32_t from = __shfl_sync(kFullWarp, offset, row) + static_cast<std::uint32_t>(chunk);
        const int place = kSwizzled ? (column / 16 + chunk) ^ (row % 8) : column / 16 + chunk;
        const std::uint32_t target = to + static_cast<std::uint32_t>(row * kPitch + place * 16);
        const bool valid = __shfl_sync(kFullWarp, there, row);
        ptx::cp_async_16(target, data + (valid ? static_cast<std::uint64_t>(from) * 16 : 0), valid);
      }
    } else {
      constexpr int kWords = kRowBytes / 4;
#pragma unroll 4
      for (int i = 0; i < Shape::kKeys * kWords / 32; ++i) {
        const int row = (i * 32 + lane) / kWords;
        const int word = (i * 32 + lane) % kWords;
        const std::uint32_t from = __shfl_sync(kFullWarp, offset, row) + static_cast<std::uint32_t>(word);
        const bool valid = __shfl_sync(kFullWarp, there, row);
        ptx::cp_async_4(to + static_cast<std::uint32_t>(row * kPitch + column + word * 4),
                        data + (valid ? static_cast<std::uint64_t>(from) * 4 : 0), valid);
      }
    }
  }

  // Row scales: keys' in the first 16 floats of a stream, values' in the next.
  __device__ QUIRE_INLINE void copy_scales(KVPlace place, std::uint32_t to) const {
    if (kv->key[0].scales == nullptr) return;
    const bool of_keys = lane < 16;
#pragma unroll
    for (int stream = 0; stream < Shape::kStreams; ++stream) {
      const bool there = place.page >= 0;
      const KVRows& keys_of = kv->key[stream];
      const KVRows& values_of = kv->value[stream];
      const std::int64_t page = of_keys ? keys_of.scale_page_stride : values_of.scale_page_stride;
      const std::int64_t token = of_keys ? keys_of.scale_token_stride : values_of.scale_token_stride;
      const std::int64_t head = of_keys ? keys_of.scale_head_stride : values_of.scale_head_stride;
      const float* scales = of_keys ? keys_of.scales : values_of.scales;
      const std::int64_t offset = there ? place.page * page + place.token * token + kv_head * head : 0;
      ptx::cp_async_4(to + static_cast<std::uint32_t>((stream * 32 + lane) * 4), scales + offset, there);
    }
  }
};

}  // namespace quire::cuda
