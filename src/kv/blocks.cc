// swap_blocks and copy_blocks: whole blocks, every stream, K, V and scales, between or inside caches.
#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <unordered_map>
#include <vector>

#include "kv/store.h"

namespace quire {
namespace {

// Bytes of one block's rows on one side: rows of `row_bytes` at these strides.
struct RowBytes {
  std::byte* data = nullptr;
  std::int64_t page_stride = 0;
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;
  std::int64_t row_bytes = 0;
};

// The pieces that make up a cache: rows of K and V of each stream, and their scales.
struct Pieces {
  RowBytes rows[8];
  int count = 0;
  std::int64_t tokens = 0;
  std::int64_t heads = 0;

  std::int64_t block_bytes() const {
    std::int64_t bytes = 0;
    for (int i = 0; i < count; ++i) bytes += rows[i].row_bytes;
    return bytes * tokens * heads;
  }
};

void add_rows(Pieces& pieces, const KVRows& rows, std::int64_t size, std::int64_t element_bytes) {
  pieces.rows[pieces.count++] = {static_cast<std::byte*>(rows.data), rows.page_stride * element_bytes,
                                 rows.token_stride * element_bytes, rows.head_stride * element_bytes,
                                 size * element_bytes};
  if (rows.scales == nullptr) return;
  constexpr std::int64_t kBytes = sizeof(float);
  pieces.rows[pieces.count++] = {reinterpret_cast<std::byte*>(rows.scales), rows.scale_page_stride * kBytes,
                                 rows.scale_token_stride * kBytes, rows.scale_head_stride * kBytes, kBytes};
}

Pieces pieces_of(const KVSource& cache) {
  Pieces pieces{.rows = {}, .tokens = cache.block_size, .heads = cache.num_kv_heads};
  const std::int64_t bytes = dtype_bytes(cache.dtype);
  for (int stream = 0; stream < cache.num_streams; ++stream) {
    add_rows(pieces, cache.key[stream], cache.head_size, bytes);
    add_rows(pieces, cache.value[stream], cache.head_size_v, bytes);
  }
  return pieces;
}

// Whether the rows of a block lie without gaps, the dimension with the smaller stride inside.
bool is_dense(const RowBytes& rows, std::int64_t tokens, std::int64_t heads) {
  const bool tokens_first = rows.head_stride == rows.row_bytes && rows.token_stride == heads * rows.row_bytes;
  const bool heads_first = rows.token_stride == rows.row_bytes && rows.head_stride == tokens * rows.row_bytes;
  return tokens_first || heads_first;
}

void copy_rows(const RowBytes& from, const RowBytes& to, std::int64_t tokens, std::int64_t heads) {
  const bool same = from.token_stride == to.token_stride && from.head_stride == to.head_stride;
  if (same && is_dense(from, tokens, heads)) {
    std::memcpy(to.data, from.data, static_cast<std::size_t>(tokens * heads * from.row_bytes));
    return;
  }
  for (std::int64_t token = 0; token < tokens; ++token) {
    for (std::int64_t head = 0; head < heads; ++head) {
      std::memcpy(to.data + token * to.token_stride + head * to.head_stride,
                  from.data + token * from.token_stride + head * from.head_stride,
                  static_cast<std::size_t>(from.row_bytes));
    }
  }
}

void copy_block(const Pieces& from, std::int64_t source, const Pieces& to, std::int64_t destination) {
  for (int i = 0; i < from.count; ++i) {
    RowBytes source_rows = from.rows[i];
    RowBytes destination_rows = to.rows[i];
    source_rows.data += source * source_rows.page_stride;
    destination_rows.data += destination * destination_rows.page_stride;
    copy_rows(source_rows, destination_rows, from.tokens, from.heads);
  }
}

// The pieces of one block packed into `memory`, as a cache of that one block.
Pieces packed_pieces(const Pieces& like, std::byte* memory) {
  Pieces packed = like;
  for (int i = 0; i < packed.count; ++i) {
    RowBytes& rows = packed.rows[i];
    rows = {memory, 0, like.heads * rows.row_bytes, rows.row_bytes, rows.row_bytes};
    memory += like.tokens * like.heads * rows.row_bytes;
  }
  return packed;
}

Status check_on_cpu(const std::string& name, const KVSource& cache) {
  if (cache.device.type == DeviceType::kCpu) return {};
  return unsupported(name + ".device: want cpu, got " + device_name(cache.device));
}

Status check_id(const char* field, std::size_t pair, std::int64_t id, std::int64_t num_blocks) {
  if (id >= 0 && id < num_blocks) return {};
  return out_of_range("pairs[" + std::to_string(pair) + "]." + field + ": want a block in [0, " +
                      std::to_string(num_blocks) + "), got " + std::to_string(id));
}

// Which pair has each destination; two pairs with one destination are an error.
using PairOfBlock = std::unordered_map<std::int64_t, std::size_t>;
Result<PairOfBlock> index_destinations(std::span<const BlockPair> pairs) {
  PairOfBlock by_destination;
  by_destination.reserve(pairs.size());
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    const auto [found, is_new] = by_destination.emplace(pairs[i].destination, i);
    if (is_new) continue;
    return invalid_argument("pairs[" + std::to_string(i) + "].destination: want each block once, got block " +
                            std::to_string(pairs[i].destination) + " again after pairs[" +
                            std::to_string(found->second) + "]");
  }
  return by_destination;
}

Status check_same_form(const KVSource& a, const KVSource& b) {
  const auto differ = [](const char* field, std::int64_t want, std::int64_t got) {
    return invalid_argument(std::string("destination.").append(field) + ": want the source's, " + std::to_string(want) +
                            ", got " + std::to_string(got));
  };
  if (a.dtype != b.dtype) {
    return invalid_argument("destination.dtype: want the source's, " + std::string(dtype_name(a.dtype)) + ", got " +
                            std::string(dtype_name(b.dtype)));
  }
  if (a.num_streams != b.num_streams) return differ("num_streams", a.num_streams, b.num_streams);
  if (a.num_kv_heads != b.num_kv_heads) return differ("num_kv_heads", a.num_kv_heads, b.num_kv_heads);
  if (a.head_size != b.head_size) return differ("head_size", a.head_size, b.head_size);
  if (a.head_size_v != b.head_size_v) return differ("head_size_v", a.head_size_v, b.head_size_v);
  if (a.block_size != b.block_size) return differ("block_size", a.block_size, b.block_size);
  if ((a.key[0].scales == nullptr) != (b.key[0].scales == nullptr)) {
    return invalid_argument("destination.scales: want row scales in both caches or in none");
  }
  return {};
}

void copy_in_order(const KVSource& cache, std::span<const BlockPair> order, std::byte* spare_memory) {
  const Pieces blocks = pieces_of(cache);
  const Pieces spare = packed_pieces(blocks, spare_memory);
  for (const BlockPair& step : order) {
    copy_block(step.source == kSpareBlock ? spare : blocks, step.source == kSpareBlock ? 0 : step.source,
               step.destination == kSpareBlock ? spare : blocks,
               step.destination == kSpareBlock ? 0 : step.destination);
  }
}

}  // namespace

Status check_destinations(std::span<const BlockPair> pairs) { return index_destinations(pairs).status(); }

// Every block has at most one source, so what remains once all blocks that nobody waits for are written are cycles.
Result<std::vector<BlockPair>> order_copies(std::span<const BlockPair> pairs) {
  QUIRE_ASSIGN_OR_RETURN(const PairOfBlock pair_of, index_destinations(pairs));
  std::unordered_map<std::int64_t, std::int64_t> readers;  // pairs still to come that read a block
  for (const BlockPair& pair : pairs) {
    if (pair.source != pair.destination) ++readers[pair.source];
  }
  std::vector<BlockPair> order;
  std::vector<bool> done(pairs.size(), false);
  const auto run = [&](std::size_t index) {
    // Writing a block may free its source, which is then written in turn.
    for (;;) {
      done[index] = true;
      order.push_back(pairs[index]);
      if (--readers[pairs[index].source] > 0) return;
      const auto next = pair_of.find(pairs[index].source);
      if (next == pair_of.end() || done[next->second]) return;
      index = next->second;
    }
  };
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    done[i] = done[i] || pairs[i].source == pairs[i].destination;
  }
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    const auto waiting = readers.find(pairs[i].destination);
    if (!done[i] && (waiting == readers.end() || waiting->second == 0)) run(i);
  }
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    if (done[i]) continue;
    // A cycle: its first destination is saved, and the last copy reads it from there.
    const std::int64_t saved = pairs[i].destination;
    order.push_back({saved, kSpareBlock});
    std::size_t at = i;
    for (; pairs[at].source != saved; at = pair_of.at(pairs[at].source)) {
      done[at] = true;
      order.push_back(pairs[at]);
    }
    done[at] = true;
    order.push_back({kSpareBlock, pairs[at].destination});
  }
  return order;
}

Status swap_blocks(const KVSource& source, const KVSource& destination, std::span<const BlockPair> pairs) {
  QUIRE_RETURN_IF_ERROR(check_cache("source", source));
  QUIRE_RETURN_IF_ERROR(check_cache("destination", destination));
  QUIRE_RETURN_IF_ERROR(check_same_form(source, destination));
  QUIRE_RETURN_IF_ERROR(check_on_cpu("source", source));
  QUIRE_RETURN_IF_ERROR(check_on_cpu("destination", destination));
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    QUIRE_RETURN_IF_ERROR(check_id("source", i, pairs[i].source, source.num_blocks));
    QUIRE_RETURN_IF_ERROR(check_id("destination", i, pairs[i].destination, destination.num_blocks));
  }
  if (source.key[0].data == destination.key[0].data) {
    return invalid_argument("destination: want another cache than the source; copy_blocks copies inside one");
  }
  QUIRE_RETURN_IF_ERROR(check_destinations(pairs));
  const Pieces from = pieces_of(source);
  const Pieces to = pieces_of(destination);
  for (const BlockPair& pair : pairs) copy_block(from, pair.source, to, pair.destination);
  return {};
}

Status copy_blocks(std::span<const KVSource> caches, std::span<const BlockPair> pairs) {
  std::int64_t spare_bytes = 0;
  for (std::size_t layer = 0; layer < caches.size(); ++layer) {
    const std::string name = "caches[" + std::to_string(layer) + "]";
    QUIRE_RETURN_IF_ERROR(check_cache(name, caches[layer]));
    QUIRE_RETURN_IF_ERROR(check_on_cpu(name, caches[layer]));
    for (std::size_t i = 0; i < pairs.size(); ++i) {
      QUIRE_RETURN_IF_ERROR(check_id("source", i, pairs[i].source, caches[layer].num_blocks));
      QUIRE_RETURN_IF_ERROR(check_id("destination", i, pairs[i].destination, caches[layer].num_blocks));
    }
    spare_bytes = std::max(spare_bytes, pieces_of(caches[layer]).block_bytes());
  }
  QUIRE_ASSIGN_OR_RETURN(const std::vector<BlockPair> order, order_copies(pairs));
  const std::unique_ptr<std::byte[]> spare(new (std::nothrow) std::byte[static_cast<std::size_t>(spare_bytes)]);
  if (spare == nullptr) {
    return resource_exhausted("copy_blocks: want " + std::to_string(spare_bytes) + " bytes for one block, got none");
  }
  for (const KVSource& cache : caches) copy_in_order(cache, order, spare.get());
  return {};
}

}  // namespace quire
