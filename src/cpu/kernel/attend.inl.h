// Attention of one chunk: all tiles of its keys in ascending order, split by split.
//
// Cost: for each tile, one pack of its keys and values and 4 * rows * 64 * head_size flops. With many rows (prefill)
// the matrix products dominate and everything they touch stays in the second-level cache; with few (decode) the reads
// of keys and values from memory do.
#pragma once

#include "cpu/kernel_table.h"
#include "kv/addressing.h"
#include "quire/plan.h"
#include "variant/logit.h"

namespace quire::cpu {
namespace {

// The rows of one tile in memory: keys of each stream, values of each stream.
struct TileAddresses {
  TileRows keys[2];
  TileRows values[2];
};

// Steps through the pages without a division a key.
struct PageWalk {
  const KVSource* kv = nullptr;
  std::int32_t seq = 0;
  std::int64_t block = 0;   // index in the block table's row
  std::int64_t offset = 0;  // token inside the block

  QUIRE_INLINE PageWalk(const KVSource& source, std::int32_t sequence, std::int32_t kv_pos)
      : kv(&source), seq(sequence) {
    if (kv->block_table != nullptr) {
      block = kv_pos / kv->block_size;
      offset = kv_pos % kv->block_size;
    } else {
      offset = static_cast<std::int64_t>(kv->kv_start[seq]) + kv_pos;
    }
  }
  QUIRE_INLINE KVPlace place() const {
    if (kv->block_table == nullptr) return {0, offset};
    return {kv->block_table[seq * kv->block_table_stride + block], offset};
  }
  // Tokens from here to the end of the page.
  QUIRE_INLINE std::int32_t left() const {
    return kv->block_table == nullptr ? kTileKeys : static_cast<std::int32_t>(kv->block_size - offset);
  }
  QUIRE_INLINE void next_page() {
    offset = 0;
    ++block;
  }
  QUIRE_INLINE void next() {
    if (++offset == kv->block_size && kv->block_table != nullptr) {
      offset = 0;
      ++block;
    }
  }
};

QUIRE_INLINE const void* row_address(const KVRows& rows, KVPlace place, std::int32_t kv_head, std::int64_t bytes) {
  return static_cast<const char*>(rows.data) + row_offset(rows, place, kv_head) * bytes;
}

// Addresses of `count` neighbours in a page.
QUIRE_INLINE void fill_rows(const KVRows& rows, KVPlace first, std::int32_t kv_head, std::int64_t bytes,
                            const void** row, std::int32_t count) {
  const char* address = static_cast<const char*>(row_address(rows, first, kv_head, bytes));
  const std::int64_t step = rows.token_stride * bytes;
  for (std::int32_t i = 0; i < count; ++i) row[i] = address + i * step;
}

// Finds the rows of keys [begin, end) of the tile, for the chunk's first kv_head.
inline void find_rows(const Call& call, const Chunk& chunk, std::int32_t first_key, KeyRange range,
                      TileAddresses& found) {
  const KVSource& kv = call.args->kv;
  const std::int64_t bytes = dtype_bytes(kv.dtype);
  const std::int32_t begin = range.begin - first_key;
  const std::int32_t end = range.end - first_key;
  for (std::int32_t stream = 0; stream < kv.num_streams; ++stream) {
    for (TileRows* rows : {&found.keys[stream], &found.values[stream]}) {
      for (std::int32_t key = 0; key < kTileKeys; ++key) rows->row[key] = nullptr;
      rows->begin = begin;
      rows->end = end;
    }
  }
  PageWalk walk(kv, chunk.seq, range.begin);
  for (std::int32_t key = begin; key < end;) {
    const KVPlace place = walk.place();
    const std::int32_t page_end = min_i32(end, key + walk.left());
    for (std::int32_t stream = 0; stream < kv.num_streams; ++stream) {
      fill_rows(kv.key[stream], place, chunk.kv_head, bytes, found.keys[stream].row + key, page_end - key);
      fill_rows(kv.value[stream], place, chunk.kv_head, bytes, found.values[stream].row + key, page_end - key);
    }
    key = page_end;
    walk.next_page();
  }
}

// What each key's dot products are multiplied by: scale, tensor and row scales, in the plain form log2(e) too.
inline void fill_scales(const Tile& tile) {
  const Call& call = *tile.call;
  const AttentionArgs& args = *call.args;
  const Scratch& scratch = *tile.scratch;
  for (std::int32_t stream = 0; stream < args.kv.num_streams; ++stream) {
    const float scale = args.variant.scale * args.query_scale * args.kv.key[stream].tensor_scale;
    const float unit = tile.is_general ? 1.0f : static_cast<float>(Number::kLog2E);
    for (std::int32_t key = 0; key < kTileKeys; ++key) {
      scratch.key_scales[stream][key] = scale * unit;
      scratch.value_scales[stream][key] = 0.0f;
    }
    if (args.kv.key[stream].scales == nullptr && args.kv.value[stream].scales == nullptr) continue;
    PageWalk walk(args.kv, tile.chunk->seq, tile.first_key + tile.begin);
    for (std::int32_t key = tile.begin; key < tile.end; ++key, walk.next()) {
      const KVPlace place = walk.place();
      const float row = row_scale(args.kv.key[stream], place, tile.chunk->kv_head);
      scratch.key_scales[stream][key] = scale * row * unit;
      scratch.value_scales[stream][key] = row_scale(args.kv.value[stream], place, tile.chunk->kv_head);
    }
  }
}

// Copies the chunk's queries into dwords of the compute type, stream after stream.
inline void load_queries(const Call& call, const Chunk& chunk, const Scratch& scratch) {
  const AttentionArgs& args = *call.args;
  const CopyFunction copy = codec(call.compute, args.query_dtype).copy;
  const std::int64_t bytes = dtype_bytes(args.query_dtype);
  float* out = scratch.query;
  for (std::int32_t stream = 0; stream < args.kv.num_streams; ++stream) {
    for (std::int32_t row = 0; row < chunk.num_rows; ++row, out += call.query_dwords) {
      const std::int32_t place = chunk.first_row + row;
      const std::int64_t token = args.query_start_loc[chunk.seq] + place / call.group_size;
      const std::int32_t head = chunk.kv_head * call.group_size + place % call.group_size;
      const std::int64_t q_head = static_cast<std::int64_t>(head) * args.kv.num_streams + stream;
      const std::int64_t at = token * args.query_token_stride + q_head * args.query_head_stride;
      copy(static_cast<const char*>(args.query) + at * bytes, args.kv.head_size, out);
    }
  }
}

// values += weights * tile, for all rows of the chunk or for `count` of them from `row`.
template <class C>
void add_values(const Tile& tile, const float* values, std::int32_t row, std::int32_t count) {
  const Call& call = *tile.call;
  const Scratch& scratch = *tile.scratch;
  const std::int32_t halves = tile.has_value_scales ? call.weight_sets : 1;
  for (std::int32_t half = 0; half < halves; ++half) {
    const std::int32_t columns = call.columns / halves;
    gemm_of<C>({.a = scratch.weights[half] + static_cast<std::int64_t>(row) * C::kWeightDwords,
                .a_stride = C::kWeightDwords,
                .b = values + half * columns,
                .b_stride = call.columns,
                .out = scratch.current.values + static_cast<std::int64_t>(row) * call.columns + half * columns,
                .out_stride = call.columns,
                .rows = count,
                .steps = (tile.end + C::kPerDword - 1) / C::kPerDword,
                .columns = columns,
                .rescale = scratch.rescale + row});
  }
}

// The same where values of some keys are infinite or NaN: 0 * inf must not reach the rows that mask those keys, so runs
// of rows that mask the same of them get a tile without them.
template <class C>
void add_values_guarded(const Tile& tile, std::uint64_t non_finite) {
  const Call& call = *tile.call;
  const Scratch& scratch = *tile.scratch;
  const std::int32_t rows = tile.chunk->num_rows * call.args->kv.num_streams;
  for (std::int32_t row = 0; row < rows;) {
    const std::uint64_t bad = non_finite & ~scratch.kept[row];
    std::int32_t end = row + 1;
    while (end < rows && (non_finite & ~scratch.kept[end]) == bad) ++end;
    const float* values = scratch.values;
    if (bad != 0) {
      copy_without<C>(bad, scratch.values, call.columns, tile.end, scratch.clean_values);
      values = scratch.clean_values;
    }
    add_values<C>(tile, values, row, end - row);
    row = end;
  }
}

// Rows few enough to multiply values without packing them, where no row masks any of a whole tile.
QUIRE_INLINE bool takes_values_directly(const Tile& tile) {
  const KVSource& kv = tile.call->args->kv;
  return !tile.is_masked && tile.chunk->num_rows * kv.num_streams <= 8 && kv.head_size_v % kTileKeys == 0;
}

QUIRE_INLINE std::int64_t head_offset(const Tile& tile, const KVRows& rows, std::int32_t head) {
  return head * rows.head_stride * dtype_bytes(tile.call->args->kv.dtype);
}

// The same for keys that are stored as the products take them.
QUIRE_INLINE bool takes_keys_directly(const Tile& tile, const Codec& functions) {
  const KVSource& kv = tile.call->args->kv;
  const bool is_whole = tile.begin == 0 && tile.end == kTileKeys;
  return functions.dot_direct != nullptr && is_whole && tile.chunk->num_rows <= 4 &&
         kv.head_size * dtype_bytes(kv.dtype) % 32 == 0;
}

// Dot products and softmax of one stream's rows.
template <class C>
void weigh_keys(const Tile& tile) {
  const Call& call = *tile.call;
  const Scratch& scratch = *tile.scratch;
  for (std::int32_t row = 0; row < tile.chunk->num_rows;) {
    const std::int32_t left = tile.chunk->num_rows - row;
    const std::int32_t tiles = (left + Simd::kRowBlock - 1) / Simd::kRowBlock;
    const std::int32_t count = (left + tiles - 1) / tiles;
    const std::int32_t first = tile.stream * tile.chunk->num_rows + row;
    gemm_of<C>({.a = scratch.query + static_cast<std::int64_t>(first) * call.query_dwords,
                .a_stride = call.query_dwords,
                .b = scratch.keys[tile.stream],
                .b_stride = kTileKeys,
                .out = scratch.logits,
                .out_stride = kTileKeys,
                .rows = count,
                .steps = call.query_dwords,
                .columns = tile.end});
    softmax_rows<C>(tile, first, count);
    row += count;
  }
}

// Folds one tile into the current state of one kv_head, the chunk's `head`-th.
template <class C>
void attend_tile(Tile& tile, const Codec& functions, const TileAddresses& rows, std::int32_t head,
                 PrefetchQueue* prefetch) {
  const Call& call = *tile.call;
  const KVSource& kv = call.args->kv;
  const Scratch& scratch = *tile.scratch;
  if (tile.has_row_scales) fill_scales(tile);
  for (tile.stream = 0; tile.stream < kv.num_streams; ++tile.stream) {
    PackTask keys{.size = kv.head_size,
                  .rows = &rows.keys[tile.stream],
                  .offset = head_offset(tile, kv.key[tile.stream], head),
                  .prefetch = prefetch};
    if (takes_keys_directly(tile, functions)) {
      const std::int32_t first = tile.stream * tile.chunk->num_rows;
      const std::int32_t served_lines = lines_of(kTileKeys, kv.head_size, kv.dtype) / kDotLeavesLines;
      keys.out = scratch.logits;
      functions.dot_direct({.keys = keys,
                            .query = scratch.query + static_cast<std::int64_t>(first) * call.query_dwords,
                            .query_stride = call.query_dwords,
                            .num_rows = tile.chunk->num_rows});
      softmax_rows<C>(tile, first, tile.chunk->num_rows, prefetch, served_lines / tile.chunk->num_rows);
    } else {
      keys.out = scratch.keys[tile.stream];
      functions.keys(keys);
      weigh_keys<C>(tile);
    }
  }
  const std::int32_t all = tile.chunk->num_rows * kv.num_streams;
  update_states(scratch, all);
  const bool is_direct = takes_values_directly(tile);
  for (std::int32_t s = 0; s < kv.num_streams; ++s) {
    PackTask values{.size = kv.head_size_v,
                    .rows = &rows.values[s],
                    .offset = head_offset(tile, kv.value[s], head),
                    .prefetch = prefetch,
                    .out_stride = call.columns};
    if (is_direct) {
      values.out = scratch.current.values + s * call.value_pad;
      const std::int32_t set = tile.has_value_scales && call.weight_sets == 2 ? s : 0;
      functions.add_direct(
          {.values = values, .weights = scratch.weights[set], .rescale = scratch.rescale, .num_rows = all});
    } else {
      values.out = scratch.values + s * call.value_pad;
      functions.values(values);
    }
  }
  if (is_direct) return;
  const std::uint64_t non_finite = tile.is_interior ? 0 : find_non_finite<C>(scratch.values, call.columns, tile.end);
  if (non_finite != 0) {
    add_values_guarded<C>(tile, non_finite);
  } else {
    add_values<C>(tile, scratch.values, 0, all);
  }
}

// One kv_head of a chunk, with its part of the scratch.
struct HeadView {
  Chunk chunk;
  Scratch scratch;
};

QUIRE_INLINE HeadView view_of(const Call& call, const Chunk& all, const Scratch& shared, std::int32_t head) {
  HeadView view{all, shared};
  const std::int64_t rows = static_cast<std::int64_t>(all.num_rows) * call.args->kv.num_streams;
  const std::int64_t first = head * ((rows + kRowPad - 1) / kRowPad * kRowPad);
  view.chunk.kv_head += head;
  view.scratch.query += head * rows * call.query_dwords;
  for (RowState* state : {&view.scratch.current, &view.scratch.total}) {
    state->largest += first;
    state->sum += first;
    state->values += first * call.columns;
  }
  return view;
}

// The rows of the next tile, in the order of memory where the kv_heads of a token are neighbours.
inline PrefetchQueue make_prefetch_queue(const Call& call, const Chunk& chunk, const TileAddresses& next) {
  const KVSource& kv = call.args->kv;
  const std::int64_t bytes = dtype_bytes(kv.dtype);
  PrefetchQueue queue;
  bool are_neighbours = true;
  for (std::int32_t i = 0; i < 2 * kv.num_streams; ++i) {
    const bool is_key = i % 2 == 0;
    const std::int32_t size = is_key ? kv.head_size : kv.head_size_v;
    const KVRows& rows = is_key ? kv.key[i / 2] : kv.value[i / 2];
    queue.arrays[i] = is_key ? &next.keys[i / 2] : &next.values[i / 2];
    queue.head_bytes[i] = rows.head_stride * bytes;
    queue.lines[i] = lines_of(1, size, kv.dtype);
    are_neighbours = are_neighbours && rows.head_stride * bytes == queue.lines[i] * kLineBytes;
  }
  queue.num_arrays = 2 * kv.num_streams;
  queue.num_heads = are_neighbours ? 1 : chunk.num_heads;
  for (std::int32_t& lines : queue.lines) lines *= are_neighbours ? chunk.num_heads : 1;
  queue.key = next.keys[0].begin;
  return queue;
}

// The keys of `range` in the tile at first_key.
QUIRE_INLINE KeyRange tile_keys(KeyRange range, std::int32_t first_key) {
  return {max_i32(range.begin, first_key), min_i32(range.end, first_key + kTileKeys)};
}
QUIRE_INLINE std::int32_t tile_start(KeyRange range) { return range.begin / kTileKeys * kTileKeys; }

// Keys that are attended after a split's: of the same chunk or of the next one.
struct Ahead {
  const Chunk* chunk = nullptr;
  KeyRange keys{};
};

// Finds the rows of the first tile ahead, for the queue.
inline PrefetchQueue look_ahead(const Call& call, const Ahead& ahead, TileAddresses& found) {
  if (ahead.chunk == nullptr || ahead.keys.is_empty()) return {};
  const std::int32_t first_key = tile_start(ahead.keys);
  find_rows(call, *ahead.chunk, first_key, tile_keys(ahead.keys, first_key), found);
  return make_prefetch_queue(call, *ahead.chunk, found);
}

// All tiles of the keys in `range`, which lie in one split; in each tile one kv_head after the other.
template <class C>
void attend_split(Tile& tile, const Chunk& chunk, const Scratch& scratch, KeyRange range, const Ahead& ahead) {
  const Call& call = *tile.call;
  const Codec functions = codec(call.compute, call.args->kv.dtype);
  HeadView views[kMaxChunkHeads];
  for (std::int32_t head = 0; head < chunk.num_heads; ++head) {
    views[head] = view_of(call, chunk, scratch, head);
    clear_state(views[head].scratch.current, chunk.num_rows * call.args->kv.num_streams, call.columns);
  }
  TileAddresses addresses[2];
  std::int32_t first_key = tile_start(range);
  find_rows(call, chunk, first_key, tile_keys(range, first_key), addresses[0]);
  for (std::int32_t i = 0; first_key < range.end; first_key += kTileKeys, ++i) {
    const KeyRange keys = tile_keys(range, first_key);
    const bool is_last = first_key + kTileKeys >= range.end;
    const Ahead next = is_last ? ahead : Ahead{&chunk, {first_key + kTileKeys, range.end}};
    PrefetchQueue queue = look_ahead(call, next, addresses[(i + 1) % 2]);
    tile.first_key = first_key;
    tile.begin = keys.begin - first_key;
    tile.end = keys.end - first_key;
    tile.is_interior = keys.begin >= chunk.interior.begin && keys.end <= chunk.interior.end;
    tile.is_masked = !tile.is_interior || keys.end - keys.begin < kTileKeys;
    for (std::int32_t head = 0; head < chunk.num_heads; ++head) {
      tile.chunk = &views[head].chunk;
      tile.scratch = &views[head].scratch;
      attend_tile<C>(tile, functions, addresses[i % 2], head, &queue);
    }
  }
}

// Hands a finished chunk on: its outputs, or its state for a later merge.
inline void finish_chunk(const Call& call, const Chunk& chunk, const Scratch& scratch, const Partial& partial) {
  const std::int32_t rows = chunk.num_rows * call.args->kv.num_streams;
  for (std::int32_t head = 0; head < chunk.num_heads; ++head) {
    const HeadView view = view_of(call, chunk, scratch, head);
    if (partial.state.largest == nullptr) {
      write_outputs(call, view.chunk, view.scratch, view.scratch.total);
      continue;
    }
    for (std::int32_t row = 0; row < rows; ++row) {
      const std::int64_t stream = row / chunk.num_rows;
      const std::int64_t target =
          partial.first + head * partial.head_rows + stream * partial.stream_rows + row % chunk.num_rows;
      copy_row_state(view.scratch.total, row, partial.state, target, call.columns);
    }
  }
}

template <class C>
void attend_of(const Call& call, const Chunk& chunk, Scratch scratch, const Partial& partial) {
  const KVSource& kv = call.args->kv;
  const Terms terms = terms_of(call.args->variant, chunk.seq);
  Tile tile{.call = &call, .chunk = &chunk, .scratch = &scratch, .terms = &terms};
  tile.is_general = has_logit_terms(terms);
  tile.has_value_scales = kv.value[0].scales != nullptr;
  tile.has_row_scales = tile.has_value_scales || kv.key[0].scales != nullptr;
  const std::int32_t rows = chunk.num_rows * kv.num_streams;
  fill_scales(tile);
  for (std::int32_t head = 0; head < chunk.num_heads; ++head) {
    const HeadView view = view_of(call, chunk, scratch, head);
    load_queries(call, view.chunk, view.scratch);
    clear_state(view.scratch.total, rows, call.columns);
  }
  bool is_first = true;
  for (std::int32_t begin = chunk.keys.begin; begin < chunk.keys.end;) {
    const std::int32_t split_end = begin / kSplitTokens * kSplitTokens + kSplitTokens;
    Ahead ahead{&chunk, {split_end, chunk.keys.end}};
    if (ahead.keys.is_empty()) ahead = chunk.next == nullptr ? Ahead{} : Ahead{chunk.next, chunk.next->keys};
    attend_split<C>(tile, chunk, scratch, {begin, min_i32(chunk.keys.end, split_end)}, ahead);
    if (is_first) {
      const RowState spare = scratch.total;
      scratch.total = scratch.current;
      scratch.current = spare;
    } else {
      for (std::int32_t head = 0; head < chunk.num_heads; ++head) {
        const HeadView view = view_of(call, chunk, scratch, head);
        for (std::int32_t row = 0; row < rows; ++row) {
          merge_row_state(view.scratch.current, row, view.scratch.total, row, call.columns);
        }
      }
    }
    is_first = false;
    begin = split_end;
  }
  finish_chunk(call, chunk, scratch, partial);
}

inline void attend(const Call& call, const Chunk& chunk, const Scratch& scratch, const Partial& partial) {
  if constexpr (Simd::kHasBf16) {
    if (call.compute == Compute::kBFloat16) {
      attend_of<BFloat16>(call, chunk, scratch, partial);
      return;
    }
  }
  attend_of<Float32>(call, chunk, scratch, partial);
}

}  // namespace
}  // namespace quire::cpu
