// The warp that feeds the wgmma tile kernel: stages of keys and values by bulk copies, a page's rows a copy.
#pragma once

#include "cuda/block/schedule.h"
#include "cuda/kernel/small.h"
#include "cuda/kernel/wgmma_tile.h"
#include "cuda/ptx/barrier.h"
#include "cuda/ptx/cp_async.h"
#include "cuda/ptx/tma.h"
#include "cuda/wgmma_tuning.h"

namespace quire::cuda {

// The block's shared memory: queries, the stages of keys, those of values, and the barriers of both.
template <class Shape>
struct WgmmaShared {
  std::uint32_t base;  // a multiple of 1024

  __device__ std::uint32_t queries() const { return base; }
  __device__ std::uint32_t keys(int stage) const {
    return base + static_cast<std::uint32_t>(Shape::kQueryBytes + stage * Shape::kKeyBytes);
  }
  __device__ std::uint32_t values(int stage) const {
    return keys(Shape::kStages) + static_cast<std::uint32_t>(stage * Shape::kValueBytes);
  }
  // Keys have arrived; have been read; values have arrived; have been read.
  __device__ std::uint32_t full_keys(int stage) const { return barrier(stage); }
  __device__ std::uint32_t empty_keys(int stage) const { return barrier(Shape::kStages + stage); }
  __device__ std::uint32_t full_values(int stage) const { return barrier(2 * Shape::kStages + stage); }
  __device__ std::uint32_t empty_values(int stage) const { return barrier(3 * Shape::kStages + stage); }

  __device__ void init_barriers() const {
    for (int stage = 0; stage < Shape::kStages; ++stage) {
      ptx::barrier_init(full_keys(stage), 1);
      ptx::barrier_init(full_values(stage), 1);
      ptx::barrier_init(empty_keys(stage), 4 * Shape::kGroups);  // a warp each
      ptx::barrier_init(empty_values(stage), 4 * Shape::kGroups);
    }
    ptx::fence_barrier_init();
  }

 private:
  __device__ std::uint32_t barrier(int index) const {
    return values(Shape::kStages) + static_cast<std::uint32_t>(8 * index);
  }
};

// A place in the ring of stages, and the parity of the phase that its barriers are in.
template <class Shape>
struct RingPlace {
  int stage = 0;
  std::uint32_t parity = 0;

  __device__ QUIRE_INLINE void advance() {
    if (++stage == Shape::kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// What a block knows of its work.
struct WgmmaWork {
  const SplitParams& params;
  KeyRange units;
  TileRows entry;  // the lane's, and the units before it, where there are few
  std::int32_t first_unit = 0;

  // The work of a block, found by every warp.
  __device__ static WgmmaWork find(const WgmmaParams& params) {
    const SplitParams& split = params.split;
    const ScheduleShape& shape = split.shape;
    WgmmaWork work{split, {}, {}, 0};
    std::int32_t total = 0;
    if (is_small(shape)) {
      const auto lane = static_cast<std::int32_t>(threadIdx.x % 32);
      if (lane < shape.num_entries) {
        const EntryPlace place = place_of_entry(split.args, shape, lane);
        if (place.tile >= 0) work.entry = tile_rows(split.args, shape, place.seq, place.tile, split.record);
      }
      std::int32_t sum = work.entry.num_units;
#pragma unroll
      for (int offset = 1; offset < 32; offset *= 2) {
        const std::int32_t other = __shfl_up_sync(kFullWarp, sum, offset);
        if (lane >= offset) sum += other;
      }
      work.first_unit = sum - work.entry.num_units;
      total = __shfl_sync(kFullWarp, sum, 31);
    } else {
      total = split.table[shape.num_entries];
    }
    const std::int32_t group = static_cast<std::int32_t>(blockIdx.x) / split.args.kv.num_kv_heads;
    work.units = {first_unit_of_group(group, total, shape.num_groups),
                  first_unit_of_group(group + 1, total, shape.num_groups)};
    return work;
  }

  __device__ QUIRE_INLINE Segment segment(std::int32_t unit) const {
    if (is_small(params.shape)) {
      const bool here = first_unit <= unit && unit < first_unit + entry.num_units;
      const int from = __ffs(static_cast<int>(__ballot_sync(kFullWarp, here))) - 1;
      TileRows rows;
      const auto tell = [&](std::int32_t value) { return __shfl_sync(kFullWarp, value, from); };
      rows = {tell(entry.seq),
              tell(entry.first_token),
              tell(entry.num_tokens),
              {tell(entry.lengths.query_start), tell(entry.lengths.query_len), tell(entry.lengths.seq_len), true},
              {tell(entry.keys.begin), tell(entry.keys.end)},
              tell(entry.num_units)};
      return cut_segment(params.shape, params.args.kv.num_kv_heads, rows, tell(first_unit), unit, units,
                         static_cast<std::int32_t>(blockIdx.x));
    }
    const std::int32_t entry = entry_of_unit(params.table, params.shape.num_entries, unit);
    return cut_segment(params.shape, params.args.kv.num_kv_heads, params.entries[entry], params.table[entry], unit,
                       units, static_cast<std::int32_t>(blockIdx.x));
  }
};

// One warp's loop over the stages of all segments. A box is `box_keys` whole rows of one page; lane i starts
// the copies of box i of a stage.
template <class Shape>
__device__ QUIRE_INLINE void feed(const WgmmaParams& params, const WgmmaWork& work, WgmmaShared<Shape> shared) {
  const KVSource& kv = params.split.args.kv;
  const auto lane = static_cast<std::int32_t>(threadIdx.x % 32);
  const std::int32_t box = params.box_keys;
  const bool has_box = lane * box < Shape::kKeys;
  RingPlace<Shape> place;
  for (std::int32_t unit = work.units.begin; unit < work.units.end;) {
    const Segment segment = work.segment(unit);
    unit += segment.num_units;
    const KeyRange keys{segment.rows.keys.begin, segment.keys.end};
    const std::int32_t* table = kv.block_table + segment.rows.seq * kv.block_table_stride;
    const auto is_there = [&](std::int32_t key) { return has_box && key < keys.end && key + box > keys.begin; };
    const auto page_of = [&](std::int32_t key) { return is_there(key) ? table[key / kv.block_size] : 0; };
    std::int32_t page = page_of(segment.keys.begin + lane * box);
    for (std::int32_t first = segment.keys.begin; first < segment.keys.end; first += Shape::kKeys) {
      const std::int32_t key = first + lane * box;
      const bool there = is_there(key);
      std::int32_t block = page;
      page = page_of(key + Shape::kKeys);
      if (there && (block < 0 || block >= kv.num_blocks)) {
        report_here(params.split.record, Fault::kBlock, segment.rows.seq, block, kv.num_blocks);
        block = static_cast<std::int32_t>(kv.num_blocks);  // outside: zeros
      }
      const std::int32_t token = key % kv.block_size;
      const auto boxes = static_cast<std::uint32_t>(__popc(__ballot_sync(kFullWarp, there)));
      const auto box_bytes = static_cast<std::uint32_t>(box * 128);
      const auto load = [&](std::uint32_t to, std::uint32_t full, const CUtensorMap* map, std::int32_t column,
                            std::uint32_t columns) {
        if (lane == 0) ptx::barrier_arrive_expect(full, boxes * box_bytes * columns);
        __syncwarp();
        if (there) ptx::load_box(to + lane * box_bytes * columns, map, full, {0, 0, column, token / 8, block});
      };
      ptx::barrier_wait(shared.empty_keys(place.stage), place.parity ^ 1);
      load(shared.keys(place.stage), shared.full_keys(place.stage), &params.keys,
           segment.kv_head * params.head_columns_k, Shape::kColumnsK);
      ptx::barrier_wait(shared.empty_values(place.stage), place.parity ^ 1);
      load(shared.values(place.stage), shared.full_values(place.stage), &params.values,
           segment.kv_head * params.head_columns_v, Shape::kColumnsV);
      place.advance();
    }
  }
}

}  // namespace quire::cuda
