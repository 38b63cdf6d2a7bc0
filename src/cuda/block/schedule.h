// Schedule: cuts the key tiles of a batch into equal shares for the workers of a grid, on the device, from the lengths
// that are there when the kernel runs.
//
// The work is a line of units: requests in order, for each its row tiles, for each its units of keys; the row tiles of
// prompts are dealt out to the groups, so that these work on neighbouring ones at a time. Group g of n takes units [g *
// total / n, (g + 1) * total / n); its num_kv_heads workers (blocks) take a kv head each, so that neighbours read the
// rows of the same tokens, which are neighbours in memory. A run of units of one row tile is a segment; a segment that
// is not all of them leaves a partial result that the combine kernel folds in ascending order. Balanced units are
// single tiles, so the bounds depend on the batch; fixed units are kSplitTokens keys from position 0 and every unit is
// a segment of its own, so that a row has the same bits in any batch.
#pragma once

#include <type_traits>

#include "cuda/block/rows.h"
#include "cuda/kernel/split.h"
#include "variant/logit.h"

namespace quire::cuda {

// One row tile.
struct TileRows {
  std::int32_t seq = 0;
  std::int32_t first_token = 0;  // inside the request
  std::int32_t num_tokens = 0;
  SeqLengths lengths;
  KeyRange keys;  // that any row sees
  std::int32_t num_units = 0;
};

// Of a request's row tiles, where they are [seq, tile].
__device__ inline std::int32_t first_entry(const AttentionArgs& args, const ScheduleShape& shape, std::int32_t seq) {
  return args.query_start_loc[seq] / shape.tokens_per_tile + seq;
}

// The terms of a request. Batches with mm-prefix ranges are the plain kernel's.
__device__ inline Terms split_terms(const AttentionArgs& args, std::int32_t seq) {
  Terms terms = terms_of(args.variant, seq);
  terms.mm_prefix = {};
  return terms;
}

// A row tile of a request of these lengths; num_units 0 where there is none.
__device__ inline TileRows tile_rows(const AttentionArgs& args, const ScheduleShape& shape, std::int32_t seq,
                                     std::int32_t tile, const SeqLengths& lengths, FaultRecord* record) {
  TileRows rows;
  rows.seq = seq;
  rows.lengths = lengths;
  const std::int64_t num_rows = static_cast<std::int64_t>(rows.lengths.query_len) * shape.group;
  if (!rows.lengths.valid || num_rows < shape.min_rows) return rows;
  if (shape.planned_rows > 0 && num_rows > shape.planned_rows) {
    report(record, Fault::kQueryLen, seq, rows.lengths.query_len, shape.planned_rows / shape.group);
    return rows;
  }
  if (num_rows > shape.max_rows) return rows;
  rows.first_token = tile * shape.tokens_per_tile;
  if (rows.first_token >= rows.lengths.query_len) return rows;
  const std::int32_t rest = rows.lengths.query_len - rows.first_token;
  rows.num_tokens = shape.tokens_per_tile == 0 ? rest : min(rest, shape.tokens_per_tile);
  const RowSpan span{rows.first_token, rows.first_token + rows.num_tokens - 1, rows.lengths.context_len()};
  rows.keys = fold_clip(split_terms(args, seq), {0, rows.lengths.seq_len}, span);
  const std::int32_t begin = rows.keys.begin & -shape.unit_keys;
  const int unit_shift = 31 - __clz(shape.unit_keys);
  rows.num_units = max((rows.keys.end - begin + shape.unit_keys - 1) >> unit_shift, 1) + shape.tile_units;
  return rows;
}

__device__ inline TileRows tile_rows(const AttentionArgs& args, const ScheduleShape& shape, std::int32_t seq,
                                     std::int32_t tile, FaultRecord* record) {
  return tile_rows(args, shape, seq, tile, seq_lengths(args, seq, record), record);
}

// Which of the row tiles, in order, is the `position`-th of the line: every num_groups-th comes next, so that the
// groups, whose parts of the line are about equal, work on neighbouring row tiles at a time, and keys that one of them
// reads are in L2 for the others. Back and forth, as row tiles see more keys than those before. Not inlined, and not
// asked by kernels that find few row tiles themselves, whose start it would delay.
__device__ __noinline__ inline std::int32_t dealt_tile(const ScheduleShape& shape, std::int32_t position) {
  const std::int32_t groups = shape.num_groups;
  const std::int32_t rounds = shape.num_entries / groups;
  const std::int32_t rest = shape.num_entries % groups;  // groups that have one more
  const std::int32_t behind = position - rest * (rounds + 1);
  const std::int32_t group = behind < 0 ? position / (rounds + 1) : rest + behind / rounds;
  const std::int32_t round = behind < 0 ? position % (rounds + 1) : behind % rounds;
  return round * groups + (round % 2 != 0 && round < rounds ? groups - 1 - group : group);
}

// Which row tile of which request an entry is, but for dealing; there may be no such tile.
struct EntryPlace {
  std::int32_t seq = 0;
  std::int32_t tile = 0;
};

__device__ inline EntryPlace place_of_entry(const AttentionArgs& args, const ScheduleShape& shape, std::int32_t entry) {
  if (shape.tokens_per_tile == 0) return {entry, 0};
  if (shape.tiles_per_seq > 0) return {entry % args.num_seqs, entry / args.num_seqs};
  std::int32_t low = 0;
  std::int32_t high = args.num_seqs - 1;
  while (low < high) {
    const std::int32_t middle = (low + high + 1) / 2;
    if (first_entry(args, shape, middle) <= entry) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return {low, entry - first_entry(args, shape, low)};
}

// The same where row tiles may be dealt out.
__device__ inline EntryPlace place_of_dealt_entry(const AttentionArgs& args, const ScheduleShape& shape,
                                                  std::int32_t entry) {
  return place_of_entry(args, shape, shape.deals_tiles ? dealt_tile(shape, entry) : entry);
}

// What a block keeps of the first requests, where each is one row tile, so that segments need not look it up again.
struct TileRecord {
  std::int32_t query_start = 0;
  std::int32_t query_len = 0;
  std::int32_t seq_len = 0;
  KeyRange keys;
};

// table[e] = units before entry e, e in [0, num_entries]; called by all kThreads threads, `scratch` holds 32 ints,
// `records` (if any) kMaxRecords requests, `entries` (if any) what each entry is. kMayDeal: row tiles may be dealt out.
template <int kThreads, bool kMayDeal = false>
__device__ void build_table(const AttentionArgs& args, const ScheduleShape& shape, std::int32_t* table,
                            std::int32_t* scratch, TileRecord* records, FaultRecord* record,
                            TileRows* entries = nullptr) {
  const int thread = static_cast<int>(threadIdx.x);
  std::int32_t carry = 0;
  for (std::int32_t base = 0; base < shape.num_entries; base += kThreads) {
    const std::int32_t entry = base + thread;
    std::int32_t units = 0;
    if (entry < shape.num_entries) {
      const EntryPlace place = kMayDeal ? place_of_dealt_entry(args, shape, entry) : place_of_entry(args, shape, entry);
      TileRows rows;
      if (place.tile >= 0) rows = tile_rows(args, shape, place.seq, place.tile, record);
      units = rows.num_units;
      if (entries != nullptr) entries[entry] = rows;
      if (records != nullptr && entry < kMaxRecords) {
        records[entry] = {rows.lengths.query_start, rows.lengths.query_len, rows.lengths.seq_len, rows.keys};
      }
    }
    std::int32_t sum = units;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const std::int32_t other = __shfl_up_sync(kFullWarp, sum, offset);
      if (thread % 32 >= offset) sum += other;
    }
    if (thread % 32 == 31) scratch[thread / 32] = sum;
    __syncthreads();
    std::int32_t before = carry;
    std::int32_t total = carry;
#pragma unroll
    for (int warp = 0; warp < kThreads / 32; ++warp) {
      if (warp < thread / 32) before += scratch[warp];
      total += scratch[warp];
    }
    if (entry < shape.num_entries) table[entry] = before + sum - units;
    carry = total;
    __syncthreads();
  }
  if (thread == 0) table[shape.num_entries] = carry;
  __syncthreads();
}

// The entry that holds unit `unit` of the line.
__device__ inline std::int32_t entry_of_unit(const std::int32_t* table, std::int32_t num_entries, std::int32_t unit) {
  std::int32_t low = 0;
  std::int32_t high = num_entries - 1;
  while (low < high) {  // the last entry that begins at or before the unit and is not empty
    const std::int32_t middle = (low + high + 1) / 2;
    if (table[middle] <= unit) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// group * total / num_groups.
__device__ inline std::int32_t first_unit_of_group(std::int32_t group, std::int32_t total, std::int32_t num_groups) {
  const auto groups = static_cast<std::uint32_t>(num_groups);
  const std::uint32_t share = static_cast<std::uint32_t>(total) / groups;
  const std::uint32_t rest = static_cast<std::uint32_t>(total) - share * groups;
  return static_cast<std::int32_t>(static_cast<std::uint32_t>(group) * share +
                                   static_cast<std::uint32_t>(group) * rest / groups);
}

__device__ inline std::int32_t group_of_unit(std::int32_t unit, std::int32_t total, std::int32_t num_groups) {
  const std::uint64_t scaled = (static_cast<std::uint64_t>(unit) + 1) * static_cast<std::uint64_t>(num_groups) - 1;
  if (scaled >> 32 == 0) {
    return static_cast<std::int32_t>(static_cast<std::uint32_t>(scaled) / static_cast<std::uint32_t>(total));
  }
  return static_cast<std::int32_t>(scaled / static_cast<std::uint64_t>(total));
}

// Some units of one row tile, for the worker's kv head.
struct Segment {
  TileRows rows;
  std::int32_t kv_head = 0;
  std::int32_t num_units = 0;
  KeyRange keys;           // of the segment, begin a multiple of the unit or the tile; may be empty
  std::int32_t slot = -1;  // of the partial result; -1: the segment is whole and writes the output
};

// The part that begins at `unit` of the row tile `rows`.
__device__ inline Segment cut_segment(const ScheduleShape& shape, std::int32_t num_kv_heads, const TileRows& rows,
                                      std::int32_t first_unit, std::int32_t unit, KeyRange units_of_group,
                                      std::int32_t worker) {
  Segment segment;
  segment.rows = rows;
  segment.kv_head = worker % num_kv_heads;
  const std::int32_t num_units = max(rows.num_units, 1);
  const std::int32_t first = unit - first_unit;
  segment.num_units = shape.is_fixed() ? 1 : min(num_units - first, units_of_group.end - unit);
  const std::int32_t begin = rows.keys.begin & -shape.unit_keys;
  const std::int32_t end = first + segment.num_units - shape.tile_units;
  segment.keys = {begin + max(first - shape.tile_units, 0) * shape.unit_keys,
                  min(begin + max(end, 0) * shape.unit_keys, rows.keys.end)};
  if (segment.num_units < num_units) {
    segment.slot =
        shape.is_fixed() ? unit * num_kv_heads + segment.kv_head : 2 * worker + (unit == units_of_group.begin ? 0 : 1);
  }
  return segment;
}

// Of a request behind the first kMaxRecords. Not inlined: decode looks for segments in two places.
__device__ __noinline__ inline TileRows late_entry_rows(const AttentionArgs& args, const ScheduleShape& shape,
                                                        std::int32_t entry, FaultRecord* record) {
  const EntryPlace place = place_of_entry(args, shape, entry);
  return tile_rows(args, shape, place.seq, place.tile, record);
}

// The segment that begins at `unit`; `records` as build_table left them, or nullptr.
template <class Records>
__device__ QUIRE_INLINE Segment segment_at(const AttentionArgs& args, const ScheduleShape& shape,
                                           const std::int32_t* table, Records records, std::int32_t unit,
                                           KeyRange units_of_group, std::int32_t worker, FaultRecord* record) {
  TileRows rows;
  const std::int32_t entry = entry_of_unit(table, shape.num_entries, unit);
  if constexpr (std::is_null_pointer_v<Records>) {
    const EntryPlace place = place_of_dealt_entry(args, shape, entry);
    rows = tile_rows(args, shape, place.seq, place.tile, record);
  } else if (entry < kMaxRecords) {
    const TileRecord& known = records[entry];
    rows = {entry,           0,
            known.query_len, {known.query_start, known.query_len, known.seq_len, true},
            known.keys,      table[entry + 1] - table[entry]};
  } else {
    rows = late_entry_rows(args, shape, entry, record);
  }
  return cut_segment(shape, args.kv.num_kv_heads, rows, table[entry], unit, units_of_group, worker);
}

}  // namespace quire::cuda
