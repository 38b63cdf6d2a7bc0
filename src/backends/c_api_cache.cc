// The C API's caches: their sizes and views, and what moves their blocks and tokens.
#include <span>
#include <vector>

#include "backends/c_api_handles.h"
#include "quire/cuda.h"

namespace {

using quire::Status;
using namespace quire::c_api;  // NOLINT(google-build-using-namespace): the conversions are this file's vocabulary

// The caches of an operation, and where it runs.
struct Move {
  std::vector<quire::KVSource> caches;
  quire::Runtime runtime;
  bool on_cuda() const { return runtime.backplane == quire::Backplane::kCuda; }
};

quire::Result<Move> move_of(std::span<const QuireKVCache* const> caches, std::string_view name,
                            const QuireRuntime* runtime) {
  QUIRE_RETURN_IF_ERROR(check_pointer(runtime, "runtime"));
  Move move;
  QUIRE_ASSIGN_OR_RETURN(move.runtime, runtime_of(*runtime));
  for (std::size_t i = 0; i < caches.size(); ++i) {
    const std::string at = caches.size() == 1 ? std::string(name) : std::string(name) + "[" + std::to_string(i) + "]";
    QUIRE_ASSIGN_OR_RETURN(quire::KVSource source, kv_source_of(caches[i], at));
    move.caches.push_back(source);
  }
  return move;
}

quire::Result<Move> move_of(const QuireKVCache* caches, std::size_t count, const QuireRuntime* runtime) {
  if (count > 0) QUIRE_RETURN_IF_ERROR(check_pointer(caches, "caches"));
  std::vector<const QuireKVCache*> each(count);
  for (std::size_t i = 0; i < count; ++i) each[i] = caches + i;
  return move_of(each, "caches", runtime);
}

template <class To, class From>
quire::Result<std::vector<To>> pairs_of(const From* pairs, std::size_t count) {
  if (count > 0) QUIRE_RETURN_IF_ERROR(check_pointer(pairs, "pairs"));
  std::vector<To> own(count);
  for (std::size_t i = 0; i < count; ++i) own[i] = {pairs[i].source, pairs[i].destination};
  return own;
}

}  // namespace

extern "C" {

int quire_kv_cache_bytes(const QuireBackend* backend, const QuireLayerConfig* config, int64_t* bytes) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pair(backend, config));
    QUIRE_RETURN_IF_ERROR(check_pointer(bytes, "bytes"));
    QUIRE_ASSIGN_OR_RETURN(const quire::KVCacheSpec spec, cache_spec_of(backend_of(backend), *config));
    QUIRE_ASSIGN_OR_RETURN(*bytes, quire::kv_cache_bytes(spec));
    return {};
  });
}

int quire_kv_block_bytes(const QuireBackend* backend, const QuireLayerConfig* config, int64_t* bytes) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pair(backend, config));
    QUIRE_RETURN_IF_ERROR(check_pointer(bytes, "bytes"));
    QUIRE_ASSIGN_OR_RETURN(const quire::KVCacheSpec spec, cache_spec_of(backend_of(backend), *config));
    QUIRE_ASSIGN_OR_RETURN(*bytes, quire::kv_block_bytes(spec));
    return {};
  });
}

int quire_view_kv_cache(const QuireBackend* backend, const QuireLayerConfig* config, void* data, QuireTensor* cache) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pair(backend, config));
    QUIRE_RETURN_IF_ERROR(check_pointer(cache, "cache"));
    QUIRE_ASSIGN_OR_RETURN(const quire::KVCacheSpec spec, cache_spec_of(backend_of(backend), *config));
    QUIRE_ASSIGN_OR_RETURN(const quire::TensorView view, quire::view_kv_cache(spec, data));
    tensor_to(view, *cache);
    return {};
  });
}

int quire_view_layered_kv_cache(const QuireBackend* backend, const QuireLayerConfig* config,
                                const QuireLayeredCache* layers, QuireTensor* cache) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pair(backend, config));
    QUIRE_RETURN_IF_ERROR(check_pointer(layers, "layers"));
    QUIRE_RETURN_IF_ERROR(check_pointer(cache, "cache"));
    QUIRE_ASSIGN_OR_RETURN(const quire::KVCacheSpec spec, cache_spec_of(backend_of(backend), *config));
    const quire::LayeredCache own{.data = layers->data, .num_layers = layers->num_layers, .layer = layers->layer};
    QUIRE_ASSIGN_OR_RETURN(const quire::TensorView view, quire::view_layered_kv_cache(spec, own));
    tensor_to(view, *cache);
    return {};
  });
}

int quire_reset_kv_scales(const QuireKVCache* cache, const QuireRuntime* runtime) {
  return guarded([&]() -> Status {
    QUIRE_ASSIGN_OR_RETURN(const Move move, move_of({&cache, 1}, "cache", runtime));
    if (move.on_cuda()) return quire::cuda::reset_kv_scales(move.caches[0], move.runtime.stream);
    return quire::reset_kv_scales(move.caches[0]);
  });
}

int quire_swap_blocks(const QuireKVCache* source, const QuireKVCache* destination, const QuireBlockPair* pairs,
                      size_t num_pairs, const QuireRuntime* runtime) {
  return guarded([&]() -> Status {
    QUIRE_ASSIGN_OR_RETURN(const Move from, move_of({&source, 1}, "source", runtime));
    QUIRE_ASSIGN_OR_RETURN(const Move to, move_of({&destination, 1}, "destination", runtime));
    QUIRE_ASSIGN_OR_RETURN(const auto own, pairs_of<quire::BlockPair>(pairs, num_pairs));
    if (from.on_cuda()) return quire::cuda::swap_blocks(from.caches[0], to.caches[0], own, from.runtime.stream);
    return quire::swap_blocks(from.caches[0], to.caches[0], own);
  });
}

int quire_copy_blocks(const QuireKVCache* caches, size_t num_caches, const QuireBlockPair* pairs, size_t num_pairs,
                      const QuireRuntime* runtime) {
  return guarded([&]() -> Status {
    QUIRE_ASSIGN_OR_RETURN(const Move move, move_of(caches, num_caches, runtime));
    QUIRE_ASSIGN_OR_RETURN(const auto own, pairs_of<quire::BlockPair>(pairs, num_pairs));
    if (move.on_cuda()) return quire::cuda::copy_blocks(move.caches, own, move.runtime.stream);
    return quire::copy_blocks(move.caches, own);
  });
}

int quire_move_tokens(const QuireKVCache* caches, size_t num_caches, const QuireSlotPair* pairs, size_t num_pairs,
                      const QuireRuntime* runtime) {
  return guarded([&]() -> Status {
    QUIRE_ASSIGN_OR_RETURN(const Move move, move_of(caches, num_caches, runtime));
    QUIRE_ASSIGN_OR_RETURN(const auto own, pairs_of<quire::SlotPair>(pairs, num_pairs));
    if (move.on_cuda()) return quire::cuda::move_tokens(move.caches, own, move.runtime.stream);
    return quire::move_tokens(move.caches, own);
  });
}

int quire_compute_slot_mapping(const QuireLayerConfig* config, const QuireBatch* batch, int64_t* slots,
                               size_t num_slots) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pointer(config, "config"));
    QUIRE_RETURN_IF_ERROR(check_pointer(batch, "batch"));
    if (num_slots > 0) QUIRE_RETURN_IF_ERROR(check_pointer(slots, "slots"));
    QUIRE_ASSIGN_OR_RETURN(const Batch own, batch_of(*batch));
    return quire::compute_slot_mapping(own.common, config->block_size, config->num_blocks, {slots, num_slots});
  });
}

}  // extern "C"
