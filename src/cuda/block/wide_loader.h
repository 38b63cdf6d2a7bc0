// Loads of the wide decode kernel: one warp brings whole tokens, some kv heads of each, into a ring of stages.
#pragma once

#include "cuda/block/schedule.h"
#include "cuda/ptx/barrier.h"
#include "cuda/ptx/bulk.h"
#include "cuda/ptx/cp_async.h"
#include "cuda/tuning.h"
#include "variant/number.h"

namespace quire::cuda {

// Steps through a block's stages. Barrier `full` of a stage is over when its tokens are there, `empty` when every head
// has used them.
template <class Shape>
struct WideRing {
  std::uint32_t stages;    // shared address of the first
  std::uint32_t barriers;  // of the first stage's two
  int index = 0;
  std::uint32_t phase = 0;

  __device__ std::uint32_t stage() const { return stages + static_cast<std::uint32_t>(index * Shape::kStageBytes); }
  __device__ std::uint32_t full() const { return barriers + static_cast<std::uint32_t>(index * 16); }
  __device__ std::uint32_t empty() const { return full() + 8; }
  __device__ QUIRE_INLINE void advance() {
    if (++index < Shape::kStages) return;
    index = 0;
    phase ^= 1;
  }
};

// Stands for tokens that are not there: what is copied needs no ordinary stores beside the copies.
static __device__ const uint4 no_token[128] = {};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

// The tokens that a block's last warp loads next: lane l copies the key (l < 16) or the value of token l % 16, all
// heads. Block ids of whole tiles are read 32 at a time, a lane a tile, as by LoadCursor.
template <class Shape>
struct WideLoader {
  const SplitParams& params;
  const KVRows& rows;  // keys or values, as this lane copies them
  std::int32_t first_head;
  WideRing<Shape> ring;
  std::int32_t unit;       // where the segment after the one at hand begins
  std::int32_t next = 0;   // position of the next tile
  std::int32_t begin = 0;  // positions that may be read
  std::int32_t end = 0;
  std::int32_t seq = 0;
  std::int32_t pages = -1;  // block table's entry of this lane's tile, or of its token where tiles are not of one page
  std::int32_t later = -1;  // of the 32 tiles after those
  int turn = 0;             // the next tile's lane
  std::int32_t first_tiles = Shape::kFirstTiles;

  // Starts the copies of the next tile, if there is one, as soon as its stage is empty; returns whether there was one.
  template <class Work>
  __device__ QUIRE_INLINE bool issue(const Work& work, std::int32_t worker) {
    while (next >= end && unit < work.units.end) {
      const Segment segment = work.segment(unit, worker);
      unit += segment.num_units;
      begin = segment.rows.keys.begin;
      end = segment.keys.end;
      next = segment.keys.begin;
      seq = segment.rows.seq;
      turn = 0;
      pages = has_page_tiles() ? page_of_tile(0) : page_of_token();
    }
    if (next >= end) return false;
    ptx::barrier_wait(ring.empty(), ring.phase ^ 1);
    std::int32_t page = pages;
    if (has_page_tiles()) page = __shfl_sync(kFullWarp, pages, turn);
    load(has_token() ? page : -1);
    ring.advance();
    --first_tiles;
    next += Shape::kKeys;
    if (!has_page_tiles()) {
      pages = page_of_token();
      return true;
    }
    if (++turn == 16) later = page_of_tile(16);
    if (turn == 32) {
      pages = later;
      turn = 0;
    }
    return true;
  }

 private:
  __device__ std::int32_t lane() const { return static_cast<std::int32_t>(threadIdx.x % 32); }
  __device__ bool has_page_tiles() const { return params.block_shift >= 4 && params.args.kv.block_table != nullptr; }

  // Whether this lane's token of the next tile may be read.
  __device__ QUIRE_INLINE bool has_token() const {
    const std::int32_t kv_pos = next + lane() % Shape::kKeys;
    return kv_pos >= begin && kv_pos < end;
  }

  __device__ QUIRE_INLINE std::uint32_t block_of(std::uint32_t kv_pos) const {
    return params.block_shift >= 0 ? kv_pos >> params.block_shift
                                   : kv_pos / static_cast<std::uint32_t>(params.args.kv.block_size);
  }
  __device__ QUIRE_INLINE std::int32_t entry_of(std::int32_t kv_pos) const {
    const KVSource& kv = params.args.kv;
    return kv.block_table[static_cast<std::int64_t>(seq) * kv.block_table_stride +
                          block_of(static_cast<std::uint32_t>(kv_pos))];
  }
  // Of this lane's tile, counted from the `first`-th after the next.
  __device__ QUIRE_INLINE std::int32_t page_of_tile(int first) const {
    const std::int32_t at = next + (first + lane()) * Shape::kKeys;
    return at < end ? entry_of(at) : -1;
  }
  __device__ QUIRE_INLINE std::int32_t page_of_token() const {
    if (!has_token()) return -1;
    return params.args.kv.block_table == nullptr ? 0 : entry_of(next + lane() % Shape::kKeys);
  }

  // Starts the copies of a tile; `page` is that of this lane's token, -1 where there is none.
  __device__ QUIRE_INLINE void load(std::int32_t page) const {
    const KVSource& kv = params.args.kv;
    const std::int32_t kv_pos = next + lane() % Shape::kKeys;
    bool there = page >= 0;
    std::int64_t token = 0;
    if (kv.block_table == nullptr) {
      token = there ? static_cast<std::int64_t>(kv.kv_start[seq]) + kv_pos : 0;
    } else {
      const auto position = static_cast<std::uint32_t>(kv_pos);
      token = position - block_of(position) * static_cast<std::uint32_t>(kv.block_size);
      if (!there || page >= kv.num_blocks) {
        if (has_token()) report(params.record, Fault::kBlock, seq, page, kv.num_blocks);
        there = false;
      }
    }
    const bool has_scales = Shape::kScaleRowBytes != 0 && rows.scales != nullptr;
    constexpr int kCopies = 2 * Shape::kKeys;
    if (lane() == 0) {
      ptx::barrier_arrive_expect(ring.full(),
                                 kCopies * (Shape::kTokenBytes + (has_scales ? Shape::kScaleRowBytes : 0)));
    }
    __syncwarp();
    // Sixteen tokens that follow each other in one page, and hold no other heads, are one copy.
    const bool is_run = __all_sync(kFullWarp, there) && params.block_shift >= 4;
    const auto copy = [&](const void* from, std::uint32_t to, int bytes, bool follow) {
      if (is_run && follow && lane() % Shape::kKeys != 0) return;
      ptx::copy_bulk(ring.stage() + to + static_cast<std::uint32_t>(lane() * bytes), there ? from : no_token,
                     static_cast<std::uint32_t>(is_run && follow ? Shape::kKeys * bytes : bytes), ring.full(),
                     first_tiles > 0 ? ptx::evict_normal() : ptx::evict_first());
    };
    copy(static_cast<const std::byte*>(rows.data) + page * rows.page_stride + token * rows.token_stride +
             first_head * rows.head_stride,
         0, Shape::kTokenBytes, rows.token_stride == Shape::kTokenBytes);
    if (!has_scales) return;
    copy(rows.scales + page * rows.scale_page_stride + token * rows.scale_token_stride + first_head, Shape::kRowsBytes,
         Shape::kScaleRowBytes, rows.scale_token_stride == Shape::kHeads);
  }
};

#endif

}  // namespace quire::cuda
