// The warps that feed the wgmma tile kernel: stages of keys and values by bulk copies, a page's rows a copy.
#pragma once

#include "cuda/block/schedule.h"
#include "cuda/kernel/small.h"
#include "cuda/kernel/wgmma_tile.h"
#include "cuda/ptx/barrier.h"
#include "cuda/ptx/cp_async.h"
#include "cuda/ptx/tma.h"
#include "cuda/wgmma_tuning.h"

namespace quire::cuda {

// What the rows' warps know of a segment, told by a feeding warp: they need not look anything up.
struct WgmmaSegment {
  std::int32_t num_rows = 0;  // 0: there are no more segments
  std::int32_t seq = 0;
  std::int32_t first_token = 0;  // inside the request
  std::int32_t query_start = 0;
  std::int32_t context_len = 0;
  std::int32_t kv_head = 0;
  std::int32_t slot = -1;  // of the partial result; -1: the segment is whole and writes the output
  std::int32_t begin = 0;  // of the stages
  KeyRange keys;           // that may be seen
  KeyRange interior;       // that every row sees
};

// The block's shared memory: queries, the stages of keys, those of values, segments, and the barriers of all.
template <class Shape>
struct WgmmaShared {
  std::uint32_t base;  // a multiple of 1024

  __device__ std::uint32_t queries() const { return base; }
  __device__ std::uint32_t keys(int stage, int stream = 0) const {
    return base + static_cast<std::uint32_t>(Shape::kQueryBytes + stage * Shape::kKeyBytes + stream * 1024);
  }
  __device__ std::uint32_t values(int stage) const {
    return keys(Shape::kStages) + static_cast<std::uint32_t>(stage * Shape::kValueBytes);
  }
  __device__ WgmmaSegment* segment(int place) const {
    static_assert(Shape::kSegmentBytes == Shape::kSegments * sizeof(WgmmaSegment));
    return static_cast<WgmmaSegment*>(__cvta_shared_to_generic(segments())) + place;
  }
  // Keys have arrived; have been read; values have arrived; have been read; so for queries and segments.
  __device__ std::uint32_t full_keys(int stage) const { return barrier(stage); }
  __device__ std::uint32_t empty_keys(int stage) const { return barrier(Shape::kStages + stage); }
  __device__ std::uint32_t full_values(int stage) const { return barrier(2 * Shape::kStages + stage); }
  __device__ std::uint32_t empty_values(int stage) const { return barrier(3 * Shape::kStages + stage); }
  __device__ std::uint32_t full_queries() const { return barrier(4 * Shape::kStages); }
  __device__ std::uint32_t empty_queries() const { return barrier(4 * Shape::kStages + 1); }
  __device__ std::uint32_t full_segment(int place) const { return barrier(4 * Shape::kStages + 2 + place); }
  __device__ std::uint32_t empty_segment(int place) const {
    return barrier(4 * Shape::kStages + 2 + Shape::kSegments + place);
  }

  __device__ void init_barriers() const {
    for (int stage = 0; stage < Shape::kStages; ++stage) {
      ptx::barrier_init(full_keys(stage), 1);
      ptx::barrier_init(full_values(stage), 1);
      ptx::barrier_init(empty_keys(stage), 4 * Shape::kGroups);  // a warp each
      ptx::barrier_init(empty_values(stage), 4 * Shape::kGroups);
    }
    ptx::barrier_init(full_queries(), 1);
    ptx::barrier_init(empty_queries(), 4 * Shape::kGroups);
    for (int place = 0; place < Shape::kSegments; ++place) {
      ptx::barrier_init(full_segment(place), 1);
      ptx::barrier_init(empty_segment(place), 4 * Shape::kGroups);
    }
    ptx::fence_barrier_init();
  }

 private:
  __device__ std::uint32_t segments() const { return values(Shape::kStages); }
  __device__ std::uint32_t barrier(int index) const {
    return segments() + static_cast<std::uint32_t>(Shape::kSegmentBytes + 8 * index);
  }
};

// A place in a ring of stages or segments, and the parity of the phase that its barriers are in.
template <int kPlaces>
struct RingPlace {
  int stage = 0;
  std::uint32_t parity = 0;

  __device__ QUIRE_INLINE void advance() {
    if (++stage == kPlaces) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// Which worker a block is. Neighbouring blocks are the same head of groups that are half of all apart, which often are
// row tiles of the same request: their keys come from memory to one half of the L2 cache.
__device__ inline std::int32_t worker_of_block(const SplitParams& split) {
  const auto block = static_cast<std::int32_t>(blockIdx.x);
  const std::int32_t heads = split.args.kv.num_kv_heads;
  if (split.shape.num_groups % 2 != 0) return block;
  return (block / 2 / heads + block % 2 * (split.shape.num_groups / 2)) * heads + block / 2 % heads;
}

// What a feeding warp knows of the block's work.
struct WgmmaWork {
  const SplitParams& params;
  KeyRange units;
  TileRows entry;  // the lane's, and the units before it, where there are few
  std::int32_t first_unit = 0;
  std::int32_t worker = 0;

  __device__ static WgmmaWork find(const WgmmaParams& params) {
    const SplitParams& split = params.split;
    const ScheduleShape& shape = split.shape;
    WgmmaWork work{split, {}, {}, 0, worker_of_block(split)};
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
    const std::int32_t group = work.worker / split.args.kv.num_kv_heads;
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
      return cut_segment(params.shape, params.args.kv.num_kv_heads, rows, tell(first_unit), unit, units, worker);
    }
    const std::int32_t entry = entry_of_unit(params.table, params.shape.num_entries, unit);
    return cut_segment(params.shape, params.args.kv.num_kv_heads, params.entries[entry], params.table[entry], unit,
                       units, worker);
  }
};

// Tells the rows' warps of a segment; null: there are no more.
template <class Shape>
__device__ QUIRE_INLINE void tell_segment(const SplitParams& params, const Segment* segment, WgmmaShared<Shape> shared,
                                          RingPlace<Shape::kSegments>& place) {
  WgmmaSegment told;
  if (segment != nullptr) {
    const TileRows& rows = segment->rows;
    told = {.num_rows = rows.num_tokens * params.shape.group,
            .seq = rows.seq,
            .first_token = rows.first_token,
            .query_start = rows.lengths.query_start,
            .context_len = rows.lengths.context_len(),
            .kv_head = segment->kv_head,
            .slot = segment->slot,
            .begin = segment->keys.begin,
            .keys = {rows.keys.begin, segment->keys.end}};
    told.interior = fold_interior(split_terms(params.args, rows.seq), told.keys,
                                  {rows.first_token, rows.first_token + rows.num_tokens - 1, told.context_len});
  }
  ptx::barrier_wait(shared.empty_segment(place.stage), place.parity ^ 1);
  if (threadIdx.x % 32 == 0) {
    *shared.segment(place.stage) = told;
    ptx::barrier_arrive(shared.full_segment(place.stage));
  }
  __syncwarp();
  place.advance();
}

// Starts the copies of a segment's queries: the q_heads (of each stream) of its tokens are its rows, those that are not
// there included.
template <class Shape>
__device__ QUIRE_INLINE void load_queries(const WgmmaParams& params, const Segment& segment, WgmmaShared<Shape> shared,
                                          std::uint32_t parity) {
  const ScheduleShape& shape = params.split.shape;
  const auto lane = static_cast<std::int32_t>(threadIdx.x % 32);
  ptx::barrier_wait(shared.empty_queries(), parity ^ 1);
  if (lane == 0) {
    const std::int32_t rows = shape.group * shape.tokens_per_tile * Shape::kStreams;
    ptx::barrier_arrive_expect(shared.full_queries(), static_cast<std::uint32_t>(rows * Shape::kColumnsQ * 128));
  }
  __syncwarp();
  if (lane < Shape::kColumnsQ * Shape::kStreams) {
    const std::int32_t column = lane % Shape::kColumnsQ;
    const std::int32_t stream = lane / Shape::kColumnsQ;
    ptx::load_box(
        shared.queries() + static_cast<std::uint32_t>((column * Shape::kRows + stream * Shape::kStreamRows) * 128),
        &params.queries, shared.full_queries(),
        {0, segment.kv_head * shape.group, segment.rows.lengths.query_start + segment.rows.first_token, column,
         stream});
  }
}

// One of two warps' loop over the stages of all segments: the first brings the keys and the queries, and tells the
// rows' warps of segments; the second brings the values. A box is `box_keys` whole rows of one page; lane i starts the
// copies of box i of a stage.
template <class Shape>
__device__ QUIRE_INLINE void feed(const WgmmaParams& params, WgmmaShared<Shape> shared, bool feeds_keys) {
  const WgmmaWork work = WgmmaWork::find(params);
  const KVSource& kv = params.split.args.kv;
  const auto lane = static_cast<std::int32_t>(threadIdx.x % 32);
  const std::int32_t box = params.box_keys;
  const bool has_box = lane * box < Shape::kKeys;
  const CUtensorMap* map = feeds_keys ? &params.keys : &params.values;
  const std::int32_t head_columns = feeds_keys ? params.head_columns_k : params.head_columns_v;
  const auto box_bytes = static_cast<std::uint32_t>(box * 128 * (feeds_keys ? Shape::kColumnsK : Shape::kColumnsV));
  RingPlace<Shape::kStages> place;
  RingPlace<Shape::kSegments> told;
  RingPlace<1> queries;
  for (std::int32_t unit = work.units.begin; unit < work.units.end;) {
    const Segment segment = work.segment(unit);
    unit += segment.num_units;
    const KeyRange keys{segment.rows.keys.begin, segment.keys.end};
    const std::int32_t* table = kv.block_table + segment.rows.seq * kv.block_table_stride;
    const auto is_there = [&](std::int32_t key) { return has_box && key < keys.end && key + box > keys.begin; };
    const auto page_of = [&](std::int32_t key) { return is_there(key) ? table[key / kv.block_size] : 0; };
    std::int32_t page = page_of(segment.keys.begin + lane * box);
    bool is_told = !feeds_keys;
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
      const std::uint32_t full = feeds_keys ? shared.full_keys(place.stage) : shared.full_values(place.stage);
      const std::uint32_t to = feeds_keys ? shared.keys(place.stage) : shared.values(place.stage);
      ptx::barrier_wait(feeds_keys ? shared.empty_keys(place.stage) : shared.empty_values(place.stage),
                        place.parity ^ 1);
      if (lane == 0) ptx::barrier_arrive_expect(full, boxes * box_bytes);
      __syncwarp();
      if (there) {
        const std::int32_t column = segment.kv_head * head_columns;
        ptx::load_box(to + lane * box_bytes, map, full,
                      {Shape::kStreams == 2 ? 64 * column : 0, 0, Shape::kStreams == 2 ? 0 : column, token / 8, block});
      }
      place.advance();
      if (is_told) continue;
      is_told = true;
      load_queries(params, segment, shared, queries.parity);
      tell_segment(params.split, &segment, shared, told);
    }
    if (!is_told) {
      load_queries(params, segment, shared, queries.parity);
      tell_segment(params.split, &segment, shared, told);
    }
    queries.advance();
  }
  if (feeds_keys) tell_segment<Shape>(params.split, nullptr, shared, told);
}

}  // namespace quire::cuda
