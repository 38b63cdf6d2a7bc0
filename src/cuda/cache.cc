// The cache operations of quire/cuda.h: checks, then kernels or copies.
#include <algorithm>
#include <string>
#include <vector>

#include "cuda/context.h"
#include "cuda/kernel/store.h"
#include "quire/cuda.h"

namespace quire::cuda {
namespace {

// Rows of `row_bytes` of one side of a block.
struct Rows {
  std::byte* data = nullptr;
  std::int64_t page = 0;  // strides in bytes
  std::int64_t token = 0;
  std::int64_t head = 0;
  std::int64_t row_bytes = 0;
};

std::vector<Rows> rows_of(const KVSource& cache) {
  std::vector<Rows> all;
  const std::int64_t bytes = dtype_bytes(cache.dtype);
  const auto add = [&](const KVRows& rows, std::int64_t size) {
    all.push_back({static_cast<std::byte*>(rows.data), rows.page_stride * bytes, rows.token_stride * bytes,
                   rows.head_stride * bytes, size * bytes});
    if (rows.scales == nullptr) return;
    all.push_back({reinterpret_cast<std::byte*>(rows.scales), rows.scale_page_stride * 4, rows.scale_token_stride * 4,
                   rows.scale_head_stride * 4, 4});
  };
  for (std::int32_t stream = 0; stream < cache.num_streams; ++stream) {
    add(cache.key[stream], cache.head_size);
    add(cache.value[stream], cache.head_size_v);
  }
  return all;
}

Status copy_pieces(void* to, const void* from, std::int64_t bytes, cudaStream_t stream) {
  return to_status(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDefault, stream),
                   "cudaMemcpyAsync");
}

// One block's rows of one side: at once where they are dense, else one strided copy a token.
Status copy_block(const Rows& from, const Rows& to, const KVSource& shape, const BlockPair& pair, cudaStream_t stream) {
  const std::byte* source = from.data + pair.source * from.page;
  std::byte* target = to.data + pair.destination * to.page;
  const std::int64_t tokens = shape.block_size;
  const std::int64_t heads = shape.num_kv_heads;
  const bool tokens_first = from.head == from.row_bytes && from.token == heads * from.row_bytes;
  const bool heads_first = from.token == from.row_bytes && from.head == tokens * from.row_bytes;
  const bool same = from.token == to.token && from.head == to.head;
  if (same && (tokens_first || heads_first))
    return copy_pieces(target, source, tokens * heads * from.row_bytes, stream);
  for (std::int64_t token = 0; token < tokens; ++token) {
    const cudaError_t error = cudaMemcpy2DAsync(
        target + token * to.token, static_cast<std::size_t>(std::max(to.head, to.row_bytes)),
        source + token * from.token, static_cast<std::size_t>(std::max(from.head, from.row_bytes)),
        static_cast<std::size_t>(from.row_bytes), static_cast<std::size_t>(heads), cudaMemcpyDefault, stream);
    QUIRE_RETURN_IF_ERROR(to_status(error, "cudaMemcpy2DAsync"));
  }
  return {};
}

Status check_pair(const BlockPair& pair, std::size_t index, std::int64_t sources, std::int64_t destinations) {
  const auto check = [&](const char* what, std::int64_t id, std::int64_t count) -> Status {
    if (id >= 0 && id < count) return {};
    return out_of_range("pairs[" + std::to_string(index) + "]." + what + ": want [0, " + std::to_string(count) +
                        "), got " + std::to_string(id));
  };
  QUIRE_RETURN_IF_ERROR(check("source", pair.source, sources));
  return check("destination", pair.destination, destinations);
}

Status check_same_shape(const KVSource& source, const KVSource& destination) {
  const bool same = source.dtype == destination.dtype && source.num_streams == destination.num_streams &&
                    source.num_kv_heads == destination.num_kv_heads && source.head_size == destination.head_size &&
                    source.head_size_v == destination.head_size_v && source.block_size == destination.block_size &&
                    (source.key[0].scales != nullptr) == (destination.key[0].scales != nullptr);
  if (same) return {};
  return invalid_argument("destination: want a cache of the source's dtype, heads, head sizes, block size and scales");
}

Status copy_pair(const KVSource& source, const KVSource& destination, const BlockPair& pair, cudaStream_t stream) {
  const std::vector<Rows> from = rows_of(source);
  const std::vector<Rows> to = rows_of(destination);
  for (std::size_t i = 0; i < from.size(); ++i) {
    QUIRE_RETURN_IF_ERROR(copy_block(from[i], to[i], source, pair, stream));
  }
  return {};
}

// The pairs in an order in which no block is overwritten before it has been read.
Result<std::vector<BlockPair>> safe_order(std::span<const BlockPair> pairs) {
  std::vector<BlockPair> rest;
  for (const BlockPair& pair : pairs) {
    if (pair.source != pair.destination) rest.push_back(pair);
  }
  std::vector<BlockPair> order;
  while (!rest.empty()) {
    const auto is_free = [&](const BlockPair& pair) {
      return std::none_of(rest.begin(), rest.end(),
                          [&](const BlockPair& other) { return other.source == pair.destination; });
    };
    const auto middle = std::stable_partition(rest.begin(), rest.end(), is_free);
    if (middle == rest.begin()) {
      return unsupported("pairs: want no cycle of blocks on a device, got one through block " +
                         std::to_string(rest.front().source));
    }
    order.insert(order.end(), rest.begin(), middle);
    rest.erase(rest.begin(), middle);
  }
  return order;
}

Status check_destinations(std::span<const BlockPair> pairs) {
  std::vector<std::int64_t> destinations;
  for (const BlockPair& pair : pairs) destinations.push_back(pair.destination);
  std::sort(destinations.begin(), destinations.end());
  const auto twice = std::adjacent_find(destinations.begin(), destinations.end());
  if (twice == destinations.end()) return {};
  return invalid_argument("pairs: want each destination once, got block " + std::to_string(*twice) + " twice");
}

}  // namespace

Status reshape_and_cache_flash(const TensorView& key, const TensorView& value, const KVSource& cache,
                               const TensorView& slot_mapping, void* stream) {
  QUIRE_ASSIGN_OR_RETURN(const Context* device, context());
  QUIRE_RETURN_IF_ERROR(take_fault(*device));
  QUIRE_ASSIGN_OR_RETURN(const StoreArgs store, check_store(key, value, cache, slot_mapping));
  return launch_store({.store = store, .record = device->record_device}, static_cast<cudaStream_t>(stream));
}

Status rope_and_cache_flash(const RopeArgs& rope, const TensorView& key, const TensorView& value, const KVSource& cache,
                            const TensorView& slot_mapping, void* stream) {
  QUIRE_ASSIGN_OR_RETURN(const Context* device, context());
  QUIRE_RETURN_IF_ERROR(take_fault(*device));
  QUIRE_ASSIGN_OR_RETURN(const StoreArgs store, check_store(key, value, cache, slot_mapping));
  QUIRE_ASSIGN_OR_RETURN(const RopeStoreArgs rotation, check_rope(rope, store));
  return launch_store({.store = store, .rope = rotation, .record = device->record_device},
                      static_cast<cudaStream_t>(stream));
}

Status swap_blocks(const KVSource& source, const KVSource& destination, std::span<const BlockPair> pairs,
                   void* stream) {
  QUIRE_RETURN_IF_ERROR(check_same_shape(source, destination));
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    QUIRE_RETURN_IF_ERROR(check_pair(pairs[i], i, source.num_blocks, destination.num_blocks));
  }
  QUIRE_RETURN_IF_ERROR(check_destinations(pairs));
  for (const BlockPair& pair : pairs) {
    QUIRE_RETURN_IF_ERROR(copy_pair(source, destination, pair, static_cast<cudaStream_t>(stream)));
  }
  return {};
}

Status copy_blocks(std::span<const KVSource> caches, std::span<const BlockPair> pairs, void* stream) {
  QUIRE_RETURN_IF_ERROR(check_destinations(pairs));
  QUIRE_ASSIGN_OR_RETURN(const std::vector<BlockPair> order, safe_order(pairs));
  for (const KVSource& cache : caches) {
    for (std::size_t i = 0; i < pairs.size(); ++i) {
      QUIRE_RETURN_IF_ERROR(check_pair(pairs[i], i, cache.num_blocks, cache.num_blocks));
    }
  }
  for (const KVSource& cache : caches) {
    for (const BlockPair& pair : order)
      QUIRE_RETURN_IF_ERROR(copy_pair(cache, cache, pair, static_cast<cudaStream_t>(stream)));
  }
  return {};
}

}  // namespace quire::cuda
