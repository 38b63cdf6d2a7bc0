// Loads of the tile kernel: queries, and stages of keys and values through the block table, by all four warps.
#pragma once

#include "cuda/block/schedule.h"
#include "cuda/ptx/cp_async.h"
#include "cuda/ptx/mma.h"
#include "cuda/tuning.h"
#include "kv/addressing.h"

namespace quire::cuda {

constexpr std::uint32_t kNoRow = 0xffffffffu;

// The block's shared memory.
template <class Shape>
struct TileShared {
  std::byte* base;

  __device__ std::byte* queries() const { return base; }
  __device__ std::byte* stage(int index) const { return base + Shape::kQueryBytes + index * Shape::kStageBytes; }
  // Where the tile is multiplied from.
  __device__ std::byte* tile(int index) const {
    return Shape::kBytes == 2 ? stage(index) : base + Shape::kQueryBytes + Shape::kStages * Shape::kStageBytes;
  }
  __device__ float* results() const { return reinterpret_cast<float*>(base); }
  // Row offsets in units of 16 bytes (4 for narrow rows), [2, 2 * kStreams, kKeys]: keys then values of each stream.
  __device__ std::uint32_t* offsets(int index) const {
    return reinterpret_cast<std::uint32_t*>(base + Shape::kBodyBytes) + index * 2 * Shape::kStreams * Shape::kKeys;
  }
  // Row scales, in the same order.
  __device__ float* scales(int index) const {
    return reinterpret_cast<float*>(base + Shape::kBodyBytes + Shape::kOffsetBytes) +
           index * 2 * Shape::kStreams * Shape::kKeys;
  }
};

template <class Shape>
struct TileLoader {
  const KVSource* kv;
  FaultRecord* record;
  TileShared<Shape> shared;
  std::int32_t seq;
  std::int32_t kv_head;
  KeyRange keys;  // that may be read
  bool narrow;    // rows are aligned to 4 bytes only; offsets are in such units then

  // Threads 0 .. kKeys - 1 have a key each of the tile at `first`: its block table entry, -1 where there is none.
  __device__ QUIRE_INLINE std::int32_t page_of(std::int32_t first) const {
    const std::int32_t kv_pos = first + static_cast<std::int32_t>(threadIdx.x);
    if (static_cast<int>(threadIdx.x) >= Shape::kKeys || kv_pos < keys.begin || kv_pos >= keys.end) return -1;
    if (kv->block_table == nullptr) return 0;
    return kv->block_table[static_cast<std::int64_t>(seq) * kv->block_table_stride +
                           static_cast<std::uint32_t>(kv_pos) / static_cast<std::uint32_t>(kv->block_size)];
  }

  // Turns what page_of gave into offsets, and fetches the row scales.
  __device__ QUIRE_INLINE void find_rows(int index, std::int32_t first, std::int32_t page) const {
    const auto thread = static_cast<std::int32_t>(threadIdx.x);
    if (thread >= Shape::kKeys) return;
    const std::int32_t kv_pos = first + thread;
    std::uint32_t* to = shared.offsets(index) + thread;
    bool there = kv_pos >= keys.begin && kv_pos < keys.end;
    KVPlace place{page, 0};
    if (there && kv->block_table != nullptr) {
      place.token = static_cast<std::uint32_t>(kv_pos) % static_cast<std::uint32_t>(kv->block_size);
      if (page < 0 || page >= kv->num_blocks) {
        report(record, Fault::kBlock, seq, page, kv->num_blocks);
        there = false;
      }
    } else if (there) {
      place = {0, static_cast<std::int64_t>(kv->kv_start[seq]) + kv_pos};
    }
#pragma unroll
    for (int i = 0; i < 2 * Shape::kStreams; ++i) {
      const KVRows& rows = i % 2 == 0 ? kv->key[i / 2] : kv->value[i / 2];
      const auto bytes = static_cast<std::uint64_t>(row_offset(rows, place, kv_head) * Shape::kBytes);
      to[i * Shape::kKeys] = there ? static_cast<std::uint32_t>(bytes / (narrow ? 4 : 16)) : kNoRow;
      if constexpr (Shape::kBytes == 1) {
        shared.scales(index)[i * Shape::kKeys + thread] = there ? row_scale(rows, place, kv_head) : 1.0f;
      }
    }
  }

  // Starts the copies of the tile whose rows are in offsets(from).
  __device__ QUIRE_INLINE void load(int stage, int from) const {
    std::byte* to = shared.stage(stage);
    const std::uint32_t* offsets = shared.offsets(from);
#pragma unroll
    for (int stream = 0; stream < Shape::kStreams; ++stream) {
      copy_rows<Shape::kD, Shape::kRawPitchK>(kv->key[stream], offsets + 2 * stream * Shape::kKeys,
                                              to + stream * Shape::kKeys * Shape::kRawPitchK);
      copy_rows<Shape::kDvPart, Shape::kRawPitchV>(
          kv->value[stream], offsets + (2 * stream + 1) * Shape::kKeys,
          to + Shape::kStreams * Shape::kKeys * Shape::kRawPitchK + stream * Shape::kDvPart * Shape::kBytes);
    }
  }

 private:
  template <int kSize, int kPitch>
  __device__ QUIRE_INLINE void copy_rows(const KVRows& rows, const std::uint32_t* offsets, std::byte* to) const {
    constexpr int kChunks = kSize * Shape::kBytes / 16;
    constexpr int kThreads = Shape::kWarps * 32;
    const auto thread = static_cast<int>(threadIdx.x);
    const auto* data = static_cast<const std::byte*>(rows.data);
    const std::uint32_t shared_to = ptx::shared_address(to);
    if (Shape::kBytes == 1 && narrow) {
#pragma unroll 4
      for (int i = thread; i < Shape::kKeys * kSize / 4; i += kThreads) {
        const int row = i / (kSize / 4);
        const int word = i % (kSize / 4);
        const std::uint32_t from = offsets[row];
        const std::byte* address = data + (from == kNoRow ? 0 : (static_cast<std::uint64_t>(from) + word) * 4);
        ptx::cp_async_4(shared_to + static_cast<std::uint32_t>(row * kPitch + word * 4), address, from != kNoRow);
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < Shape::kKeys * kChunks / kThreads; ++i) {
      const int row = (i * kThreads + thread) / kChunks;
      const int chunk = (i * kThreads + thread) % kChunks;
      const std::uint32_t from = offsets[row];
      const std::byte* address = data + (from == kNoRow ? 0 : (static_cast<std::uint64_t>(from) + chunk) * 16);
      ptx::cp_async_16(shared_to + static_cast<std::uint32_t>(row * kPitch + chunk * 16), address, from != kNoRow);
    }
  }
};

// The token (inside the request) and q_head of row r of a stream's tile.
struct TileRow {
  std::int32_t row = 0;
  std::int32_t q_head = 0;
  bool valid = false;
  KeyRange seen;
};

__device__ inline TileRow tile_row(const Segment& segment, std::int32_t group, std::int32_t streams,
                                   std::int32_t stream, std::int32_t r) {
  TileRow at;
  at.valid = r < segment.rows.num_tokens * group;
  at.row = segment.rows.first_token + (at.valid ? r / group : 0);
  at.q_head = (segment.kv_head * group + (at.valid ? r % group : 0)) * streams + stream;
  return at;
}

// load_query_tile for rows of any dtype and alignment, a pair of elements a thread; `first` is where the tile's first
// row is, num_rows how many rows of a stream are there. Not inlined: it is rare and long.
template <class Shape>
__device__ __noinline__ void round_query_tile(const AttentionArgs& args, std::int64_t first, std::int32_t num_rows,
                                              std::int32_t group, std::byte* to) {
  constexpr int kPairs = Shape::kD / 2;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < Shape::kRows * kPairs; i += Shape::kWarps * 32) {
    const std::int32_t stream = i / kPairs / Shape::kStreamRows;
    const std::int32_t r = i / kPairs % Shape::kStreamRows;
    const std::int64_t from = first + r / group * args.query_token_stride +
                              (r % group * Shape::kStreams + stream) * args.query_head_stride + i % kPairs * 2;
    const float2 pair = r < num_rows ? query_pair(args.query, args.query_dtype, from) : make_float2(0.0f, 0.0f);
    *reinterpret_cast<std::uint32_t*>(to + i / kPairs * Shape::kPitchQ + i % kPairs * 4) =
        ptx::pack<typename Shape::T>(pair.x, pair.y);
  }
}

// All rows of the tile into shared memory, by copies that the caller waits for; rows that are not there become zero.
template <class Shape>
__device__ QUIRE_INLINE void load_query_tile(const AttentionArgs& args, const Segment& segment, std::int32_t group,
                                             std::byte* to) {
  constexpr int kChunks = Shape::kD / 8;
  if (dtype_bytes(args.query_dtype) != 2 || reinterpret_cast<std::uintptr_t>(args.query) % 16 != 0 ||
      args.query_token_stride % 8 != 0 || args.query_head_stride % 8 != 0) {
    const std::int64_t token = segment.rows.lengths.query_start + segment.rows.first_token;
    const std::int64_t first =
        token * args.query_token_stride + segment.kv_head * group * Shape::kStreams * args.query_head_stride;
    round_query_tile<Shape>(args, first, segment.rows.num_tokens * group, group, to);
    return;
  }
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < Shape::kRows * kChunks; i += Shape::kWarps * 32) {
    const int r = i / kChunks;
    const int stream = r / Shape::kStreamRows;
    const TileRow at = tile_row(segment, group, Shape::kStreams, stream, r % Shape::kStreamRows);
    const std::int64_t from =
        (segment.rows.lengths.query_start + static_cast<std::int64_t>(at.row)) * args.query_token_stride +
        at.q_head * args.query_head_stride + i % kChunks * 8;
    ptx::cp_async_16(ptx::shared_address(to + r * Shape::kPitchQ + i % kChunks * 16),
                     static_cast<const std::uint16_t*>(args.query) + from, at.valid);
  }
}

}  // namespace quire::cuda
