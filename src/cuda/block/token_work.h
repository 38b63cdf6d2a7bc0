// Work and loads of the token decode kernel: a warp finds its share of a batch by itself, from registers, and brings
// tiles of 16 keys into its ring ahead of their use.
#pragma once

#include "cuda/block/schedule.h"
#include "cuda/ptx/cp_async.h"
#include "cuda/tuning.h"

namespace quire::cuda {

// A batch of at most 64 requests: lane l keeps requests l and l + 32.
struct TokenBatch {
  static constexpr int kHalves = kMaxTokenSeqs / 32;

  std::int32_t query_start[kHalves];
  KeyRange keys[kHalves];
  std::int32_t units_before[kHalves];
  std::int32_t num_units[kHalves];
  std::int32_t total = 0;

  // `meanwhile` runs while the lengths are under way.
  template <class Function>
  __device__ QUIRE_INLINE void find(const AttentionArgs& args, const ScheduleShape& shape, FaultRecord* record,
                                    Function&& meanwhile) {
    const auto lane = static_cast<std::int32_t>(threadIdx.x % 32);
    SeqWords words[kHalves];
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      if (32 * half + lane < args.num_seqs) words[half] = SeqWords::of(args, 32 * half + lane);
    }
    meanwhile();
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      query_start[half] = num_units[half] = 0;
      keys[half] = {};
      if (32 * half < args.num_seqs) {
        TileRows rows;
        const std::int32_t seq = 32 * half + lane;
        if (seq < args.num_seqs) {
          rows = tile_rows(args, shape, seq, 0, check_lengths(args, seq, words[half], record), record);
        }
        query_start[half] = rows.lengths.query_start;
        keys[half] = rows.keys;
        num_units[half] = rows.num_units;
      }
      std::int32_t sum = num_units[half];
      if (args.num_seqs > 1) {
#pragma unroll
        for (int offset = 1; offset < 32; offset *= 2) {
          const std::int32_t other = __shfl_up_sync(kFullWarp, sum, offset);
          if (lane >= offset) sum += other;
        }
      }
      units_before[half] = total + sum - num_units[half];
      total += __shfl_sync(kFullWarp, sum, args.num_seqs > 1 ? 31 : 0);
    }
  }

  // The request that holds unit `unit` < total, and what of it: a run of units that ends with the request or the group.
  __device__ QUIRE_INLINE Segment segment(const ScheduleShape& shape, std::int32_t num_kv_heads, std::int32_t unit,
                                          KeyRange units, std::int32_t worker) const {
    TileRows rows;
    std::int32_t first = 0;
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      const unsigned begun = __ballot_sync(kFullWarp, num_units[half] > 0 && units_before[half] <= unit);
      if (begun == 0) continue;
      const int lane = 31 - __clz(static_cast<int>(begun));
      rows.seq = 32 * half + lane;
      rows.lengths.query_start = __shfl_sync(kFullWarp, query_start[half], lane);
      rows.keys = {__shfl_sync(kFullWarp, keys[half].begin, lane), __shfl_sync(kFullWarp, keys[half].end, lane)};
      rows.num_units = __shfl_sync(kFullWarp, num_units[half], lane);
      first = __shfl_sync(kFullWarp, units_before[half], lane);
    }
    rows.num_tokens = 1;
    return cut_segment(shape, num_kv_heads, rows, first, unit, units, worker);
  }
};

// The tiles that a warp loads ahead of those it works on, on into the segments that follow. Tiles lie in one page each;
// block ids are read 32 at a time, a lane a tile, as by LoadCursor.
template <class Shape>
struct TokenCursor {
  static constexpr std::int32_t kStep = Shape::kWarps * Shape::kKeys;

  // One side of the cache as this lane copies it: as many lanes as divide a row's chunks of 16 bytes share a row.
  template <int kSize, int kPitchBytes>
  struct Side {
    static constexpr int kChunks = kSize * Shape::kBytes / 16;
    static constexpr int kLanes = kChunks % 32 == 0 ? 32 : kChunks % 16 == 0 ? 16 : kChunks % 8 == 0 ? 8 : 4;
    static constexpr int kRowsAtOnce = 32 / kLanes;
    static_assert(kChunks % kLanes == 0 && Shape::is_swizzled(kSize));

    const std::byte* data;  // of this lane's first row and chunk of a page
    std::uint32_t page;     // strides in 16 bytes
    std::uint32_t token;

    __device__ static Side of(const KVRows& rows, std::int32_t kv_head) {
      const auto lane = static_cast<std::int32_t>(threadIdx.x % 32);
      const auto units = [](std::int64_t stride) { return static_cast<std::uint32_t>(stride * Shape::kBytes >> 4); };
      const std::uint32_t token = units(rows.token_stride);
      return {static_cast<const std::byte*>(rows.data) +
                  static_cast<std::uint64_t>(units(rows.head_stride * kv_head)) * 16 +
                  static_cast<std::uint64_t>(token * static_cast<std::uint32_t>(lane / kLanes)) * 16 +
                  lane % kLanes * 16,
              units(rows.page_stride), token};
    }

    // Sixteen rows from `first_token` of a page on; rows outside [begin, end) of them become zeros where kPartial.
    template <bool kPartial>
    __device__ QUIRE_INLINE void copy(std::uint32_t page_id, std::uint32_t first_token, std::uint32_t to, KeyRange rows,
                                      std::uint64_t policy) const {
      const int lane = static_cast<int>(threadIdx.x % 32);
      const int row = lane / kLanes;
      const std::byte* from = data + static_cast<std::uint64_t>(page_id * page + first_token * token) * 16;
      const std::uint64_t step = static_cast<std::uint64_t>(token) * (16 * kRowsAtOnce);
#pragma unroll
      for (int i = 0; i < Shape::kKeys; i += kRowsAtOnce) {
        const bool there = !kPartial || (i + row >= rows.begin && i + row < rows.end);
#pragma unroll
        for (int k = 0; k < kChunks; k += kLanes) {
          const int place = (k + lane % kLanes) ^ ((i + row) % 8);
          const std::uint32_t target = to + static_cast<std::uint32_t>((i + row) * kPitchBytes + place * 16);
          if constexpr (kPartial) {
            ptx::cp_async_16(target, there ? from + k * 16 : data, there);
          } else {
            ptx::cp_async_16(target, from + k * 16, policy);
          }
        }
        from += step;
      }
    }
  };

  const SplitParams& params;
  Side<Shape::kD, Shape::kPitchK> key;
  Side<Shape::kDv, Shape::kPitchV> value;
  std::uint32_t ring;                   // this warp's
  std::int32_t unit;                    // where the segment after the one at hand begins
  const std::int32_t* table = nullptr;  // the request's block ids
  std::int32_t seq = 0;
  KeyRange keys{};         // that may be read
  std::int32_t next = 0;   // key of the next tile
  std::int32_t pages = 0;  // this lane's tile's
  std::int32_t later = 0;  // of the 32 tiles after those
  int turn = 0;            // the next tile's lane
  int stage = 0;
  int first_tiles = 0;  // left of those that L2 keeps as usual
  std::uint64_t policy = 0;

  __device__ QUIRE_INLINE void choose_policy(std::int32_t num_tiles) {
    first_tiles = num_tiles <= Shape::kFewTiles ? 0 : Shape::kFirstTiles;
    policy = first_tiles > 0 ? ptx::evict_normal() : ptx::evict_first();
  }

  __device__ QUIRE_INLINE void issue(const TokenBatch& batch, KeyRange units) {
    while (next >= keys.end && unit < units.end) {
      const Segment segment =
          batch.segment(params.shape, params.args.kv.num_kv_heads, unit, units, static_cast<std::int32_t>(blockIdx.x));
      unit += segment.num_units;
      seq = segment.rows.seq;
      keys = {segment.rows.keys.begin, segment.keys.end};
      table = params.args.kv.block_table + seq * params.args.kv.block_table_stride;
      next = segment.keys.begin + static_cast<std::int32_t>(threadIdx.x / 32) * Shape::kKeys;
      turn = 0;
      pages = page_of_tile(0);
    }
    if (next < keys.end) {
      load(__shfl_sync(kFullWarp, pages, turn));
      if (first_tiles > 0 && --first_tiles == 0) policy = ptx::evict_first();
      next += kStep;
      if (++turn == 16) later = page_of_tile(16);
      if (turn == 32) {
        pages = later;
        turn = 0;
      }
    }
    ptx::cp_async_commit();
    stage = stage + 1 == Shape::kStages ? 0 : stage + 1;
  }

 private:
  // The block id of the tile of this lane, counted from the `first`-th after `next`. Positions before the keys have
  // none.
  __device__ QUIRE_INLINE std::int32_t page_of_tile(int first) const {
    const std::int32_t at = next + (first + static_cast<std::int32_t>(threadIdx.x % 32)) * kStep;
    return at < keys.end && at + Shape::kKeys > keys.begin ? table[at >> params.block_shift] : 0;
  }

  __device__ QUIRE_INLINE void load(std::int32_t page) const {
    const std::uint32_t to = ring + static_cast<std::uint32_t>(stage * Shape::kStageBytes);
    KeyRange rows{keys.begin - next, keys.end - next};
    bool is_whole = rows.begin <= 0 && rows.end >= Shape::kKeys;
    if (static_cast<std::uint32_t>(page) >= static_cast<std::uint32_t>(params.args.kv.num_blocks)) {
      report(params.record, Fault::kBlock, seq, page, params.args.kv.num_blocks);
      rows = {};
      is_whole = false;
    }
    const std::uint32_t first_token = static_cast<std::uint32_t>(next) & ((1u << params.block_shift) - 1u);
    if (is_whole) {
      key.template copy<false>(page, first_token, to, rows, policy);
      value.template copy<false>(page, first_token, to + Shape::kKeys * Shape::kPitchK, rows, policy);
    } else {
      key.template copy<true>(page, first_token, to, rows, policy);
      value.template copy<true>(page, first_token, to + Shape::kKeys * Shape::kPitchK, rows, policy);
    }
  }
};

}  // namespace quire::cuda
