// The cache operations of quire/cuda.h: checks, then kernels or copies.
#include <algorithm>
#include <numeric>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cuda/context.h"
#include "cuda/kernel/move.h"
#include "cuda/kernel/store.h"
#include "quire/cuda.h"

namespace quire::cuda {
namespace {

// K, V and their scales of each stream, one after the other; tokens are units or the outer rows of one.
struct CacheRows {
  MoveRows rows[kMovePieces];
  std::int32_t row_bytes[kMovePieces];
  int count = 0;
};

CacheRows rows_of(const KVSource& cache) {
  CacheRows all;
  const std::int64_t bytes = dtype_bytes(cache.dtype);
  const auto add = [&](void* data, std::int64_t page, std::int64_t token, std::int64_t head, std::int64_t row_bytes) {
    all.row_bytes[all.count] = static_cast<std::int32_t>(row_bytes);
    all.rows[all.count++] = {
        .data = static_cast<std::byte*>(data), .page = page, .token = token, .outer = token, .inner = head};
  };
  const auto add_rows = [&](const KVRows& rows, std::int64_t size) {
    add(rows.data, rows.page_stride * bytes, rows.token_stride * bytes, rows.head_stride * bytes, size * bytes);
    if (rows.scales == nullptr) return;
    add(rows.scales, rows.scale_page_stride * 4, rows.scale_token_stride * 4, rows.scale_head_stride * 4, 4);
  };
  for (std::int32_t stream = 0; stream < cache.num_streams; ++stream) {
    add_rows(cache.key[stream], cache.head_size);
    add_rows(cache.value[stream], cache.head_size_v);
  }
  return all;
}

// What moves between two caches, or inside one.
enum class Unit : std::uint8_t { kBlock, kToken };

std::int32_t widest_word(const MoveRows& from, const MoveRows& to, std::int32_t row_bytes) {
  std::uint64_t bits = static_cast<std::uint64_t>(row_bytes);
  for (const MoveRows& rows : {from, to}) {
    bits |= reinterpret_cast<std::uintptr_t>(rows.data);
    bits |= static_cast<std::uint64_t>(rows.page | rows.token | rows.outer | rows.inner);
  }
  return bits % 16 == 0 ? 16 : bits % 4 == 0 ? 4 : 1;
}

MoveParams move_params(const KVSource& source, const KVSource& destination, Unit unit) {
  const CacheRows from = rows_of(source);
  const CacheRows to = rows_of(destination);
  MoveParams params;
  params.num_pieces = from.count;
  params.unit_tokens = unit == Unit::kToken ? source.block_size : 1;
  params.num_outer = unit == Unit::kToken ? 1 : source.block_size;
  params.num_inner = source.num_kv_heads;
  // Neighbouring threads take neighbouring rows.
  const bool heads_outside = params.num_outer > 1 && from.rows[0].inner > from.rows[0].outer;
  if (heads_outside) std::swap(params.num_outer, params.num_inner);
  for (int i = 0; i < from.count; ++i) {
    MovePiece& piece = params.pieces[i];
    piece = {.from = from.rows[i], .to = to.rows[i], .row_bytes = from.row_bytes[i]};
    for (MoveRows* rows : {&piece.from, &piece.to}) {
      if (heads_outside) std::swap(rows->outer, rows->inner);
      if (unit == Unit::kBlock) rows->token = 0;
    }
    piece.word_bytes = widest_word(piece.from, piece.to, piece.row_bytes);
  }
  return params;
}

// Moves, those of a chain one after the other; chain c ends before ends[c].
struct Chains {
  std::vector<UnitMove> moves;
  std::vector<std::size_t> ends;
};

// Moves that touch no common unit are chains of their own.
Chains chains_of(std::span<const UnitMove> moves) {
  std::unordered_map<std::int64_t, std::size_t> move_of;  // the first that touches a unit
  std::vector<std::size_t> parent;                        // of a move: an earlier one of its chain, or itself
  const auto root = [&](std::size_t move) {
    while (parent[move] != move) move = parent[move] = parent[parent[move]];
    return move;
  };
  for (std::size_t i = 0; i < moves.size(); ++i) {
    parent.push_back(i);
    for (const std::int64_t unit : {moves[i].source, moves[i].destination}) {
      if (unit == kSavedUnit) continue;
      const auto [found, is_new] = move_of.try_emplace(unit, i);
      if (is_new) continue;
      const std::size_t a = root(found->second);
      const std::size_t b = root(i);
      parent[std::max(a, b)] = std::min(a, b);
    }
  }
  std::vector<std::size_t> order(moves.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return root(a) < root(b); });
  Chains chains;
  for (std::size_t i = 0; i < order.size(); ++i) {
    chains.moves.push_back(moves[order[i]]);
    if (i + 1 == order.size() || root(order[i]) != root(order[i + 1])) chains.ends.push_back(i + 1);
  }
  return chains;
}

// A block that a cycle saves lives in registers, for one launch.
Status check_cycles(const Chains& chains) {
  std::size_t begin = 0;
  for (const std::size_t end : chains.ends) {
    const std::span<const UnitMove> chain(chains.moves.data() + begin, end - begin);
    begin = end;
    const auto saves = [](const UnitMove& move) { return move.destination == kSavedUnit; };
    if (chain.size() <= kMovesOfLaunch || std::none_of(chain.begin(), chain.end(), saves)) continue;
    return unsupported("pairs: want cycles of at most " + std::to_string(kMovesOfLaunch - 1) +
                       " blocks on a device, with those that are copied from them, got one through block " +
                       std::to_string(chain.back().destination));
  }
  return {};
}

// Launches of at most kMovesOfLaunch moves. Only a chain that is longer is cut, and goes on in the next one.
Status run_moves(MoveParams params, const Chains& chains, cudaStream_t stream) {
  std::size_t count = 0;
  params.num_chains = 0;
  const auto flush = [&]() -> Status {
    if (count > 0) QUIRE_RETURN_IF_ERROR(launch_move(params, stream));
    count = 0;
    params.num_chains = 0;
    return {};
  };
  std::size_t begin = 0;
  for (const std::size_t end : chains.ends) {
    const std::size_t length = end - begin;
    if (length <= kMovesOfLaunch && count + length > kMovesOfLaunch) QUIRE_RETURN_IF_ERROR(flush());
    for (std::size_t i = begin; i < end; ++i) {
      if (count == kMovesOfLaunch) QUIRE_RETURN_IF_ERROR(flush());
      if (i == begin || count == 0) ++params.num_chains;
      params.moves[count++] = chains.moves[i];
      params.first[params.num_chains] = static_cast<std::int16_t>(count);
    }
    begin = end;
  }
  return flush();
}

// Whether kernels can read and write the cache: memory of the device, or of the host that is pinned.
Result<bool> is_reachable(const KVSource& cache) {
  const CacheRows all = rows_of(cache);
  for (int i = 0; i < all.count; ++i) {
    const MoveRows& rows = all.rows[i];
    const std::int64_t last = (cache.num_blocks - 1) * rows.page + (cache.block_size - 1) * rows.token +
                              (cache.num_kv_heads - 1) * rows.inner + all.row_bytes[i] - 1;
    for (const std::int64_t offset : {std::int64_t{0}, last}) {
      cudaPointerAttributes attributes;
      QUIRE_CUDA_RETURN_IF_ERROR(cudaPointerGetAttributes(&attributes, rows.data + offset));
      if (attributes.type == cudaMemoryTypeUnregistered || attributes.devicePointer != rows.data + offset) return false;
    }
  }
  return true;
}

Status copy_pieces(void* to, const void* from, std::int64_t bytes, cudaStream_t stream) {
  return to_status(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDefault, stream),
                   "cudaMemcpyAsync");
}

// One block's rows of one piece: at once where they are dense, else one strided copy for each outer row.
Status copy_block(const MoveParams& shape, const MovePiece& piece, const BlockPair& pair, cudaStream_t stream) {
  const MoveRows& from = piece.from;
  const MoveRows& to = piece.to;
  const std::byte* source = from.data + pair.source * from.page;
  std::byte* target = to.data + pair.destination * to.page;
  const std::int64_t row_bytes = piece.row_bytes;
  const bool is_dense = from.inner == row_bytes && from.outer == shape.num_inner * row_bytes;
  if (is_dense && from.inner == to.inner && from.outer == to.outer)
    return copy_pieces(target, source, shape.num_outer * from.outer, stream);
  for (std::int64_t row = 0; row < shape.num_outer; ++row) {
    const cudaError_t error = cudaMemcpy2DAsync(
        target + row * to.outer, static_cast<std::size_t>(std::max(to.inner, row_bytes)), source + row * from.outer,
        static_cast<std::size_t>(std::max(from.inner, row_bytes)), static_cast<std::size_t>(row_bytes),
        static_cast<std::size_t>(shape.num_inner), cudaMemcpyDefault, stream);
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

Status check_on_device(const std::string& name, const KVSource& cache) {
  if (cache.device.type == DeviceType::kCuda) return {};
  return invalid_argument(name + ".device: want cuda, got " + device_name(cache.device));
}

// Caches on the device, and pairs of ids below what `size` says of a cache.
template <class Pair, class Size>
Status check_inside(std::span<const KVSource> caches, std::span<const Pair> pairs, Size&& size) {
  for (std::size_t layer = 0; layer < caches.size(); ++layer) {
    QUIRE_RETURN_IF_ERROR(check_on_device("caches[" + std::to_string(layer) + "]", caches[layer]));
    const std::int64_t count = size(caches[layer]);
    for (std::size_t i = 0; i < pairs.size(); ++i) {
      QUIRE_RETURN_IF_ERROR(check_pair({pairs[i].source, pairs[i].destination}, i, count, count));
    }
  }
  return {};
}

Status check_same_shape(const KVSource& source, const KVSource& destination) {
  const bool same = source.dtype == destination.dtype && source.num_streams == destination.num_streams &&
                    source.num_kv_heads == destination.num_kv_heads && source.head_size == destination.head_size &&
                    source.head_size_v == destination.head_size_v && source.block_size == destination.block_size &&
                    (source.key[0].scales != nullptr) == (destination.key[0].scales != nullptr);
  if (same) return {};
  return invalid_argument("destination: want a cache of the source's dtype, heads, head sizes, block size and scales");
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
  if (source.key[0].data == destination.key[0].data) {
    return invalid_argument("destination: want another cache than the source; copy_blocks copies inside one");
  }
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    QUIRE_RETURN_IF_ERROR(check_pair(pairs[i], i, source.num_blocks, destination.num_blocks));
  }
  QUIRE_RETURN_IF_ERROR(check_destinations(pairs));
  const MoveParams params = move_params(source, destination, Unit::kBlock);
  QUIRE_ASSIGN_OR_RETURN(const bool reads, is_reachable(source));
  QUIRE_ASSIGN_OR_RETURN(const bool writes, is_reachable(destination));
  if (reads && writes) {
    Chains chains;
    for (const BlockPair& pair : pairs) {
      chains.moves.push_back({pair.source, pair.destination});
      chains.ends.push_back(chains.moves.size());
    }
    return run_moves(params, chains, static_cast<cudaStream_t>(stream));
  }
  for (const BlockPair& pair : pairs) {
    for (int i = 0; i < params.num_pieces; ++i) {
      QUIRE_RETURN_IF_ERROR(copy_block(params, params.pieces[i], pair, static_cast<cudaStream_t>(stream)));
    }
  }
  return {};
}

Status copy_blocks(std::span<const KVSource> caches, std::span<const BlockPair> pairs, void* stream) {
  QUIRE_ASSIGN_OR_RETURN(const std::vector<BlockPair> order, order_copies(pairs));
  QUIRE_RETURN_IF_ERROR(check_inside(caches, pairs, [](const KVSource& cache) { return cache.num_blocks; }));
  std::vector<UnitMove> moves;
  for (const BlockPair& pair : order) moves.push_back({pair.source, pair.destination});
  const Chains chains = chains_of(moves);
  QUIRE_RETURN_IF_ERROR(check_cycles(chains));
  for (const KVSource& cache : caches) {
    QUIRE_RETURN_IF_ERROR(
        run_moves(move_params(cache, cache, Unit::kBlock), chains, static_cast<cudaStream_t>(stream)));
  }
  return {};
}

Status move_tokens(std::span<const KVSource> caches, std::span<const SlotPair> pairs, void* stream) {
  std::vector<UnitMove> moves;
  for (const SlotPair& pair : pairs) {
    if (pair.source != pair.destination) moves.push_back({pair.source, pair.destination});
  }
  const auto num_slots = [](const KVSource& cache) { return cache.num_blocks * cache.block_size; };
  QUIRE_RETURN_IF_ERROR(check_inside(caches, pairs, num_slots));
  const Chains chains = chains_of(moves);
  for (const KVSource& cache : caches) {
    QUIRE_RETURN_IF_ERROR(
        run_moves(move_params(cache, cache, Unit::kToken), chains, static_cast<cudaStream_t>(stream)));
  }
  return {};
}

Status reset_kv_scales(const KVSource& cache, void* stream) {
  if (cache.num_streams < 1 || cache.num_streams > 2) {
    return invalid_argument("cache.num_streams: want 1 or 2, got " + std::to_string(cache.num_streams));
  }
  if (cache.key[0].scales == nullptr) return {};
  QUIRE_RETURN_IF_ERROR(check_on_device("cache", cache));
  return launch_reset_scales(cache, static_cast<cudaStream_t>(stream));
}

}  // namespace quire::cuda
