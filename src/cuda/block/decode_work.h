// What a block of the decode kernel works on, and the loads of a warp, which run ahead of the work.
#pragma once

#include "cuda/block/decode_loader.h"
#include "cuda/block/schedule.h"

namespace quire::cuda {

// What a block knows of its work.
struct DecodeWork {
  const SplitParams& params;
  const std::int32_t* table;
  const TileRecord* records;
  KeyRange units;

  __device__ QUIRE_INLINE Segment segment(std::int32_t unit, std::int32_t worker) const {
    return segment_at(params.args, params.shape, table, records, unit, units, worker, params.record);
  }
  __device__ QUIRE_INLINE Segment segment(std::int32_t unit) const {
    return segment(unit, static_cast<std::int32_t>(blockIdx.x));
  }
};

// The tiles that a warp loads ahead of those it works on, on into the segments that follow. Block ids of whole tiles
// are read 32 at a time, a lane a tile: behind the tiles under way a read of one takes as long as those do.
template <class Shape>
struct LoadCursor {
  static constexpr std::int32_t kStep = Shape::kWarps * Shape::kKeys;

  DecodeLoader<Shape> loader;
  std::int32_t unit;       // where the segment after the one at hand begins
  std::int32_t next = 0;   // key of the next tile
  std::int32_t end = 0;    // of the segment's keys
  std::int32_t pages = 0;  // this lane's tile's, or this lane's key's where tiles are not of one page
  std::int32_t later = 0;  // of the 32 tiles after those
  int turn = 0;            // the next tile's lane
  int stage = 0;
  int first_tiles = 0;  // left of those that L2 keeps as usual

  __device__ QUIRE_INLINE void choose_policy(std::int32_t num_tiles) {
    first_tiles = num_tiles <= Shape::kFewTiles ? 0 : Shape::kFirstTiles;
    loader.policy = first_tiles > 0 ? ptx::evict_normal() : ptx::evict_first();
  }

  __device__ QUIRE_INLINE void issue(const DecodeWork& work) {
    while (next >= end && unit < work.units.end) {
      const Segment segment = work.segment(unit);
      unit += segment.num_units;
      loader.seq = segment.rows.seq;
      loader.keys = {segment.rows.keys.begin, segment.keys.end};
      next = segment.keys.begin + static_cast<std::int32_t>(threadIdx.x / 32) * Shape::kKeys;
      end = segment.keys.end;
      turn = 0;
      pages = loader.has_page_tiles() ? page_of_tile(0) : loader.page_of(next);
    }
    if (next < end) {
      loader.load(stage, next, loader.has_page_tiles() ? page_of_key() : pages);
      if (first_tiles > 0 && --first_tiles == 0) loader.policy = ptx::evict_first();
      next += kStep;
      go_on();
    }
    ptx::cp_async_commit();
    stage = stage + 1 == Shape::kStages ? 0 : stage + 1;
  }

 private:
  // The block id of the tile of this lane, counted from the `first`-th after `next`.
  __device__ QUIRE_INLINE std::int32_t page_of_tile(int first) const {
    const std::int32_t at = next + (first + loader.lane) * kStep;
    return at < end ? loader.entry_of(at) : -1;
  }
  __device__ QUIRE_INLINE std::int32_t page_of_key() const {
    const std::int32_t page = __shfl_sync(kFullWarp, pages, turn);
    return loader.has_key(next + loader.lane % Shape::kKeys) ? page : -1;
  }
  __device__ QUIRE_INLINE void go_on() {
    if (!loader.has_page_tiles()) {
      pages = loader.page_of(next);
      return;
    }
    if (++turn == 16) later = page_of_tile(16);
    if (turn == 32) {
      pages = later;
      turn = 0;
    }
  }
};

}  // namespace quire::cuda
