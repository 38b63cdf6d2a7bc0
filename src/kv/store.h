// A checked cache update: plain pointers and strides, for every device that writes a cache.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "quire/kv_cache.h"

namespace quire {

// Rows [num_rows, num_heads, size]; strides count elements.
struct TokenRows {
  void* data = nullptr;
  std::int64_t num_rows = 0;
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;
  std::int32_t num_heads = 0;
  std::int32_t size = 0;
};

// What reshape_and_cache_flash stores, once its arguments have been found good.
struct StoreArgs {
  TokenRows key = {};
  TokenRows value = {};
  DType dtype = DType::kFloat32;  // of key and value
  const std::int64_t* slots = nullptr;
  std::int64_t num_slots = 0;
  KVSource cache = {};
};

// The rotation that may go before it.
struct RopeStoreArgs {
  TokenRows query = {};             // num_heads 0: none
  const void* positions = nullptr;  // int64, or int32
  bool wide_positions = true;
  std::int64_t num_positions = 0;
  const void* cos_sin = nullptr;  // [max_position, rotary_dim]
  DType cos_sin_dtype = DType::kFloat32;
  std::int64_t cos_sin_stride = 0;
  std::int64_t max_position = 0;
  std::int32_t rotary_dim = 0;
  RopeStyle style = RopeStyle::kNeox;
};

// Everything but the contents of slot_mapping and positions, which may be on a device.
Result<StoreArgs> check_store(const TensorView& key, const TensorView& value, const KVSource& cache,
                              const TensorView& slot_mapping);
Result<RopeStoreArgs> check_rope(const RopeArgs& rope, const StoreArgs& store);

// The contents, on the host.
Status check_slots(const StoreArgs& args);
Status check_positions(const RopeStoreArgs& rope);

// Errors: two pairs with one destination.
Status check_destinations(std::span<const BlockPair> pairs);

// Stands for the one block of spare memory that breaks cycles.
inline constexpr std::int64_t kSpareBlock = -1;
// The pairs in an order in which nothing is overwritten before it has been read; pairs of a block with itself are left
// out. A cycle begins with a copy to kSpareBlock and ends with one from there. Errors as check_destinations.
Result<std::vector<BlockPair>> order_copies(std::span<const BlockPair> pairs);

// Pointers, sizes and dtype of a cache that is going to be written.
Status check_cache(std::string_view name, const KVSource& cache);

}  // namespace quire
