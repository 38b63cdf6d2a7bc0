// BlockPool: free lists threaded through the blocks themselves, reference counts, and the map of cached prefixes.
#include "quire/block_pool.h"

#include <new>
#include <string>
#include <unordered_map>

namespace quire {
namespace {

constexpr BlockId kNullBlock = 0;
constexpr BlockId kNone = -1;

struct BlockHashHasher {
  // The hash is well mixed already.
  std::size_t operator()(const BlockHash& hash) const { return static_cast<std::size_t>(hash.low); }
};

struct Block {
  BlockHash hash;
  BlockId previous = kNone;  // in its free list
  BlockId next = kNone;
  std::int32_t owners = 0;
  bool is_cached = false;
};

std::string item(const char* name, std::size_t index) {
  return std::string(name).append("[").append(std::to_string(index)).append("]");
}

}  // namespace

// Every block but the null block is owned, or in one of the two free lists: `empty` holds blocks without a known
// prefix, `cached` those with one, the least recently freed in front.
struct BlockPool::State {
  struct List {
    BlockId first = kNone;
    BlockId last = kNone;
  };

  std::vector<Block> blocks;
  List empty;
  List cached;
  std::int64_t num_free = 0;
  std::int64_t evictions = 0;
  std::unordered_map<BlockHash, BlockId, BlockHashHasher> block_of;

  Block& at(BlockId id) { return blocks[static_cast<std::size_t>(id)]; }

  void push_front(List& list, BlockId id) {
    at(id).previous = kNone;
    at(id).next = list.first;
    (list.first == kNone ? list.last : at(list.first).previous) = id;
    list.first = id;
  }
  void push_back(List& list, BlockId id) {
    at(id).next = kNone;
    at(id).previous = list.last;
    (list.last == kNone ? list.first : at(list.last).next) = id;
    list.last = id;
  }
  void remove(List& list, BlockId id) {
    const Block& block = at(id);
    (block.previous == kNone ? list.first : at(block.previous).next) = block.next;
    (block.next == kNone ? list.last : at(block.next).previous) = block.previous;
  }

  // Lets an owned block be found under `hash`, unless another one is.
  Status name_block(const std::string& name, BlockId id, const BlockHash& hash, std::vector<BlockId>& named) {
    QUIRE_RETURN_IF_ERROR(check_id(name, id));
    Block& block = at(id);
    if (block.owners == 0) {
      return invalid_argument(name + ": want a block with an owner, got block " + std::to_string(id) +
                              ", which is free");
    }
    if (block.is_cached && block.hash != hash) {
      return invalid_argument(name + ": want a block that is not cached, or under this hash, got block " +
                              std::to_string(id) + ", which is cached under another");
    }
    if (block.is_cached || !block_of.emplace(hash, id).second) return {};
    block.hash = hash;
    block.is_cached = true;
    named.push_back(id);
    return {};
  }
  void forget(BlockId id) {
    block_of.erase(at(id).hash);
    at(id).is_cached = false;
  }
  BlockId take_free() {
    if (empty.first != kNone) {
      const BlockId id = empty.first;
      remove(empty, id);
      return id;
    }
    const BlockId id = cached.first;
    remove(cached, id);
    forget(id);
    ++evictions;
    return id;
  }

  Status check_id(const std::string& name, BlockId id) const {
    if (id > kNullBlock && id < static_cast<BlockId>(blocks.size())) return {};
    return out_of_range(name + ": want a block in [1, " + std::to_string(blocks.size()) + "), got " +
                        std::to_string(id));
  }
};

BlockPool::BlockPool(std::unique_ptr<State> state) : state_(std::move(state)) {}
BlockPool::BlockPool(BlockPool&&) noexcept = default;
BlockPool& BlockPool::operator=(BlockPool&&) noexcept = default;
BlockPool::~BlockPool() = default;

Result<BlockPool> BlockPool::create(std::int64_t num_blocks) {
  if (num_blocks < 1 || num_blocks > std::int64_t{1} << 30) {
    return invalid_argument("num_blocks: want [1, 2^30], the null block included, got " + std::to_string(num_blocks));
  }
  auto state = std::make_unique<State>();
  try {
    state->blocks.resize(static_cast<std::size_t>(num_blocks));
  } catch (const std::bad_alloc&) {
    return resource_exhausted("num_blocks: want memory for " + std::to_string(num_blocks) + " entries, got none");
  }
  for (std::int64_t id = 1; id < num_blocks; ++id) state->push_back(state->empty, static_cast<BlockId>(id));
  state->num_free = num_blocks - 1;
  return BlockPool(std::move(state));
}

std::int64_t BlockPool::num_blocks() const { return static_cast<std::int64_t>(state_->blocks.size()); }
std::int64_t BlockPool::num_free_blocks() const { return state_->num_free; }

Result<std::vector<BlockId>> BlockPool::allocate(std::int64_t count) {
  if (count < 0) return invalid_argument("count: want >= 0, got " + std::to_string(count));
  if (count > state_->num_free) {
    return resource_exhausted("count: want at most the " + std::to_string(state_->num_free) + " free blocks, got " +
                              std::to_string(count));
  }
  std::vector<BlockId> taken(static_cast<std::size_t>(count));
  for (BlockId& id : taken) {
    id = state_->take_free();
    state_->at(id).owners = 1;
  }
  state_->num_free -= count;
  return taken;
}

Status BlockPool::retain(std::span<const BlockId> blocks) {
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    QUIRE_RETURN_IF_ERROR(state_->check_id(item("blocks", i), blocks[i]));
    const Block& block = state_->at(blocks[i]);
    if (block.owners > 0 || block.is_cached) continue;
    return invalid_argument(item("blocks", i) + ": want a block with an owner or a cached one, got block " +
                            std::to_string(blocks[i]) + ", which is free");
  }
  for (BlockId id : blocks) {
    Block& block = state_->at(id);
    if (block.owners++ > 0) continue;
    state_->remove(state_->cached, id);
    --state_->num_free;
  }
  return {};
}

Status BlockPool::release(std::span<const BlockId> blocks) {
  // A block may be named more often than it has owners, so owners are taken away first and given back on an error.
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    Status status = state_->check_id(item("blocks", i), blocks[i]);
    if (status.ok() && state_->at(blocks[i]).owners == 0) {
      status = invalid_argument(item("blocks", i) + ": want a block with an owner, got block " +
                                std::to_string(blocks[i]) + " once more than it has owners");
    }
    if (!status.ok()) {
      while (i-- > 0) ++state_->at(blocks[i]).owners;
      return status;
    }
    --state_->at(blocks[i]).owners;
  }
  // The end of a sequence is of least use to others: it is queued first. A block named twice is queued once.
  for (std::size_t i = blocks.size(); i-- > 0;) {
    Block& block = state_->at(blocks[i]);
    if (block.owners != 0) continue;
    block.owners = -1;
    if (block.is_cached) state_->push_back(state_->cached, blocks[i]);
  }
  for (BlockId id : blocks) {
    Block& block = state_->at(id);
    if (block.owners != -1) continue;
    block.owners = 0;
    ++state_->num_free;
    if (!block.is_cached) state_->push_front(state_->empty, id);
  }
  return {};
}

std::int32_t BlockPool::ref_count(BlockId block) const {
  return state_->check_id("block", block).ok() ? state_->at(block).owners : 0;
}

Status BlockPool::cache_block(BlockId block, const BlockHash& hash) { return cache_blocks({&block, 1}, {&hash, 1}); }

Status BlockPool::cache_blocks(std::span<const BlockId> blocks, std::span<const BlockHash> hashes) {
  if (hashes.size() != blocks.size()) {
    return invalid_argument("hashes: want one for each of the " + std::to_string(blocks.size()) + " blocks, got " +
                            std::to_string(hashes.size()));
  }
  std::vector<BlockId> named;  // by this call
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    const Status status = state_->name_block(item("blocks", i), blocks[i], hashes[i], named);
    if (status.ok()) continue;
    for (BlockId id : named) state_->forget(id);
    return status;
  }
  return {};
}

std::optional<BlockId> BlockPool::find_cached(const BlockHash& hash) const {
  const auto found = state_->block_of.find(hash);
  if (found == state_->block_of.end()) return std::nullopt;
  return found->second;
}

void BlockPool::reset_prefix_cache() {
  while (state_->cached.first != kNone) {
    const BlockId id = state_->cached.first;
    state_->remove(state_->cached, id);
    state_->push_back(state_->empty, id);
  }
  for (const auto& [hash, id] : state_->block_of) state_->at(id).is_cached = false;
  state_->block_of.clear();
}

BlockPool::Stats BlockPool::stats() const {
  return {.evictions = state_->evictions, .cached_blocks = static_cast<std::int64_t>(state_->block_of.size())};
}

}  // namespace quire
