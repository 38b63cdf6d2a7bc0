// What the split-KV kernels (decode, tile, combine) share: how their work is cut, and their parameters.
#pragma once

#include <cuda_runtime_api.h>

#include "core/macros.h"
#include "cuda/kernel/plain.h"
#include "quire/plan.h"

namespace quire::cuda {

constexpr std::int32_t kTileKeys = 64;

// Requests of a decode step that every block keeps the lengths of; the table of more is written by the first one.
constexpr std::int32_t kMaxRecords = 64;

// What the host knows of the work of one kernel.
struct ScheduleShape {
  std::int32_t group = 1;     // rows of a token: q_heads (or pairs) of a kv head
  std::int32_t min_rows = 1;  // requests with fewer or more rows are another kernel's
  std::int32_t max_rows = 0x7fffffff;
  std::int32_t planned_rows = 0;     // > 0: requests with more rows are no kernel's, which is a fault
  std::int32_t tokens_per_tile = 0;  // 0: a request is one row tile
  // > 0: no request has more row tiles. Entries are then [tile, seq], so that the row tiles of a request are worked on
  // side by side and its keys and values come from memory once; else [seq, tile].
  std::int32_t tiles_per_seq = 0;
  bool deals_tiles = false;            // entries [seq, tile] are dealt out to the groups; not of small batches
  std::int32_t unit_keys = kTileKeys;  // a power of two
  std::int32_t tile_units = 0;         // what the start and end of a row tile take besides, so that shares are equal
  std::int32_t num_entries = 0;        // row tiles, unused ones included
  std::int32_t num_groups = 0;         // groups of num_kv_heads workers
  std::int32_t num_slots = 0;          // partial results that there is room for

  QUIRE_HD bool is_fixed() const { return unit_keys == kSplitTokens; }
};

struct TileRows;

struct SplitParams {
  AttentionArgs args;
  RowTarget target;  // of (token, q_head) rows of head_size_v elements; differential: (token, pair) rows of both values
  ScheduleShape shape;
  FaultRecord* record = nullptr;
  // Partial results of segments: row r of slot s at (s * slot_rows + r).
  float* partial_rows = nullptr;     // [num_slots, slot_rows, width], not normalised
  float2* partial_states = nullptr;  // [num_slots, slot_rows]: largest logit in units of log 2, sum of weights
  std::int32_t* table = nullptr;     // [num_entries + 1] units before each entry
  TileRows* entries = nullptr;       // [num_entries] what they are; kernels with records of their own have none
  std::int32_t slot_rows = 0;
  std::int32_t stream_rows = 0;    // rows of a stream in a slot
  std::int32_t combine_rows = 1;   // rows of a tile that the combine kernel folds side by side
  std::int32_t combine_heads = 1;  // kv heads that its block folds
  std::int32_t block_shift = -1;   // log2 of the block size where it is a power of two
  bool narrow_rows = false;        // rows of the cache are aligned to 4 bytes, not to 16
  // 16 or 32 where row scales follow their rows and tokens and pages are whole multiples of it apart; else 0.
  std::int32_t inline_unit = 0;
};

}  // namespace quire::cuda
