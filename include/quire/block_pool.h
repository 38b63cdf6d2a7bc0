// BlockPool and PrefixCache: which cache blocks are free, who shares them, and which hold a known prefix.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "quire/status.h"

namespace quire {

using BlockId = std::int32_t;

// Hash of a full block's tokens chained with everything before it (and an extra key: adapter, image), 128 bits. Among n
// different blocks any two share a hash with odds of about n^2 / 2^129: 10^-21 for a thousand million blocks. It keeps
// accidents apart, not attackers: who can choose tokens might look for a collision, so tenants that do not trust each
// other want extra keys of their own.
struct BlockHash {
  std::uint64_t low = 0;
  std::uint64_t high = 0;
  friend bool operator==(const BlockHash&, const BlockHash&) = default;
};
BlockHash hash_block(const BlockHash& parent, std::span<const std::int32_t> tokens, std::uint64_t extra_key = 0);
// Hashes of all full blocks of a token sequence.
std::vector<BlockHash> hash_blocks(std::span<const std::int32_t> tokens, std::int32_t block_size,
                                   std::uint64_t extra_key = 0);

// Reference-counted blocks of one cache. Block 0 is the null block: never handed out. Not thread-safe.
// Freed blocks that hold a known prefix stay findable until they are needed again: blocks without one are handed out
// first, then the least recently freed. Every call takes time proportional to the blocks it names; an error leaves the
// pool as it was.
class BlockPool {
 public:
  static Result<BlockPool> create(std::int64_t num_blocks);

  std::int64_t num_blocks() const;
  std::int64_t num_free_blocks() const;  // blocks that allocate could hand out, cached ones included
  // kResourceExhausted if fewer than `count` are free: nothing is taken then. Evicts cached blocks as needed.
  Result<std::vector<BlockId>> allocate(std::int64_t count);
  // One more owner of each block. Errors: id out of range, null block, a block that is free and not cached.
  Status retain(std::span<const BlockId> blocks);
  // One owner less of each; blocks without owners become free, the last of the span first to be reused.
  // Errors: id out of range, or a block without owner (nothing is released then).
  Status release(std::span<const BlockId> blocks);
  std::int32_t ref_count(BlockId block) const;

  // Names a full block that the caller owns, so that later requests find it. A hash that another block has already
  // stays there. Errors: id out of range, a block without owner, a block that is cached under another hash.
  Status cache_block(BlockId block, const BlockHash& hash);
  // The same for several; after an error none of them is newly named.
  Status cache_blocks(std::span<const BlockId> blocks, std::span<const BlockHash> hashes);
  std::optional<BlockId> find_cached(const BlockHash& hash) const;
  // Forgets all cached prefixes; owners keep their blocks.
  void reset_prefix_cache();

  struct Stats {
    std::int64_t evictions = 0;
    std::int64_t cached_blocks = 0;
  };
  Stats stats() const;

  BlockPool(BlockPool&&) noexcept;
  BlockPool& operator=(BlockPool&&) noexcept;
  ~BlockPool();

 private:
  struct State;
  explicit BlockPool(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// Longest-prefix lookup over a BlockPool, with hit statistics.
class PrefixCache {
 public:
  PrefixCache(BlockPool& pool, std::int32_t block_size) : pool_(&pool), block_size_(block_size) {}

  // The longest run of cached blocks from the start of the sequence; the blocks gain an owner. A sequence that is
  // cached whole gives up its last block, so that at least one token is computed. Counts in the statistics.
  Result<std::vector<BlockId>> acquire_prefix(std::span<const std::int32_t> tokens, std::uint64_t extra_key = 0);
  // Names the full blocks of a sequence whose first `num_computed_tokens` tokens are in `blocks`. Errors: more computed
  // tokens than tokens, too few blocks, and cache_block's; nothing is named then.
  Status commit(std::span<const std::int32_t> tokens, std::span<const BlockId> blocks, std::int64_t num_computed_tokens,
                std::uint64_t extra_key = 0);

  std::int64_t queried_tokens() const { return queried_tokens_; }
  std::int64_t hit_tokens() const { return hit_tokens_; }

 private:
  BlockPool* pool_;
  std::int32_t block_size_;
  std::int64_t queried_tokens_ = 0;
  std::int64_t hit_tokens_ = 0;
};

}  // namespace quire
