// Where a token's key or value row and its scale are: the one place that turns positions into addresses.
#pragma once

#include <cstdint>

#include "core/convert.h"
#include "core/macros.h"
#include "quire/attention.h"

namespace quire {

// The page and the token inside it that hold position `kv_pos` of sequence `seq`.
struct KVPlace {
  std::int64_t page = 0;
  std::int64_t token = 0;
};

QUIRE_HD inline KVPlace kv_place(const KVSource& kv, std::int32_t seq, std::int32_t kv_pos) {
  if (kv.block_table == nullptr) return {0, static_cast<std::int64_t>(kv.kv_start[seq]) + kv_pos};
  const std::int64_t row = static_cast<std::int64_t>(seq) * kv.block_table_stride;
  return {kv.block_table[row + kv_pos / kv.block_size], kv_pos % kv.block_size};
}

// Element offset of the row (page, token, kv_head).
QUIRE_HD inline std::int64_t row_offset(const KVRows& rows, KVPlace place, std::int32_t kv_head) {
  return place.page * rows.page_stride + place.token * rows.token_stride + kv_head * rows.head_stride;
}

// The row's scale, without the tensor's.
QUIRE_HD inline float row_scale(const KVRows& rows, KVPlace place, std::int32_t kv_head) {
  if (rows.scales == nullptr) return 1.0f;
  return rows.scales[place.page * rows.scale_page_stride + place.token * rows.scale_token_stride +
                     kv_head * rows.scale_head_stride];
}

}  // namespace quire
