// What the kernels of the cache update share: where a token's rows go, and its angles.
#pragma once

#include "cuda/block/guard.h"
#include "cuda/kernel/store.h"
#include "kv/addressing.h"

namespace quire::cuda {

// A row of K or V on its way.
struct RowPair {
  const void* from = nullptr;
  void* to = nullptr;
  std::int64_t source = 0;  // first element
  std::int64_t target = 0;
  std::int32_t size = 0;
  float tensor_scale = 1.0f;
  float* row_scale = nullptr;
};

// The place of a slot; page -1: store nothing.
__device__ inline KVPlace slot_place(const StoreParams& params, std::int64_t token, std::int64_t slot) {
  const KVSource& cache = params.store.cache;
  const std::int64_t end = cache.num_blocks * cache.block_size;
  if (slot >= end) report(params.record, Fault::kSlot, static_cast<std::int32_t>(token), slot, end);
  if (slot < 0 || slot >= end) return {-1, 0};
  if (params.block_shift >= 0) return {slot >> params.block_shift, slot & (cache.block_size - 1)};
  return {slot / cache.block_size, slot % cache.block_size};
}

__device__ inline RowPair row_pair(const TokenRows& rows, const KVSource& cache, const KVRows* of_streams,
                                   std::int64_t token, std::int32_t head, KVPlace place) {
  const std::int32_t stream = cache.num_streams == 2 ? head & 1 : 0;
  const KVRows& to = of_streams[stream];
  const std::int32_t kv_head = cache.num_streams == 2 ? head >> 1 : head;
  RowPair pair{.from = rows.data,
               .to = to.data,
               .source = token * rows.token_stride + head * rows.head_stride,
               .target = row_offset(to, place, kv_head),
               .size = rows.size,
               .tensor_scale = to.tensor_scale};
  if (to.scales != nullptr) {
    pair.row_scale = to.scales + place.page * to.scale_page_stride + place.token * to.scale_token_stride +
                     kv_head * to.scale_head_stride;
  }
  return pair;
}

// The position of a token that has one; -1 after a report: it is outside of the table.
__device__ inline std::int64_t checked_position(const StoreParams& params, std::int64_t token) {
  const RopeStoreArgs& rope = params.rope;
  const std::int64_t position = rope.wide_positions ? static_cast<const std::int64_t*>(rope.positions)[token]
                                                    : static_cast<const std::int32_t*>(rope.positions)[token];
  if (position >= 0 && position < rope.max_position) return position;
  report(params.record, Fault::kPosition, static_cast<std::int32_t>(token), position, rope.max_position);
  return -1;
}

}  // namespace quire::cuda
