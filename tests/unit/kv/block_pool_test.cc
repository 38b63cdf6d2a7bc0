// Tests of BlockPool against a simple model, of block hashes and of PrefixCache.
#include "quire/block_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <set>

namespace quire {
namespace {

using Blocks = std::vector<BlockId>;

// The pool's rules written with ordinary containers.
class PoolModel {
 public:
  explicit PoolModel(BlockId num_blocks) : num_blocks_(num_blocks) {
    for (BlockId id = 1; id < num_blocks; ++id) empty_.insert(id);
  }
  std::int64_t num_free() const { return static_cast<std::int64_t>(empty_.size() + cached_free_.size()); }
  bool is_valid(BlockId id) const { return id >= 1 && id < num_blocks_; }
  int owners(BlockId id) const { return owners_.count(id) != 0 ? owners_.at(id) : 0; }
  std::optional<BlockId> find(std::uint64_t name) const {
    const auto found = block_of_.find(name);
    return found == block_of_.end() ? std::nullopt : std::optional(found->second);
  }
  std::int64_t num_cached() const { return static_cast<std::int64_t>(block_of_.size()); }
  std::int64_t evictions() const { return evictions_; }

  // Follows what the pool handed out and checks that it was allowed to.
  void allocated(const Blocks& blocks) {
    for (BlockId id : blocks) {
      ASSERT_TRUE(is_valid(id));
      ASSERT_EQ(owners(id), 0);
      if (empty_.erase(id) == 0) {
        ASSERT_TRUE(empty_.empty()) << "a cached block was taken while others were free";
        ASSERT_EQ(cached_free_.front(), id) << "not the least recently freed";
        cached_free_.erase(cached_free_.begin());
        block_of_.erase(name_of_.at(id));
        name_of_.erase(id);
        ++evictions_;
      }
      owners_[id] = 1;
    }
  }
  bool can_retain(const Blocks& blocks) const {
    return std::all_of(blocks.begin(), blocks.end(),
                       [&](BlockId id) { return is_valid(id) && (owners(id) > 0 || name_of_.count(id) != 0); });
  }
  void retain(const Blocks& blocks) {
    for (BlockId id : blocks) {
      if (owners_[id]++ == 0) cached_free_.erase(std::find(cached_free_.begin(), cached_free_.end(), id));
    }
  }
  bool can_release(const Blocks& blocks) const {
    std::map<BlockId, int> wanted;
    for (BlockId id : blocks) {
      if (!is_valid(id) || ++wanted[id] > owners(id)) return false;
    }
    return true;
  }
  void release(const Blocks& blocks) {
    Blocks freed;
    for (BlockId id : blocks) --owners_[id];
    for (std::size_t i = blocks.size(); i-- > 0;) {
      const BlockId id = blocks[i];
      if (owners(id) == 0 && std::find(freed.begin(), freed.end(), id) == freed.end()) freed.push_back(id);
    }
    for (BlockId id : freed) {
      if (name_of_.count(id) != 0) {
        cached_free_.push_back(id);
      } else {
        empty_.insert(id);
      }
    }
  }
  bool can_name(BlockId id, std::uint64_t name) const {
    return is_valid(id) && owners(id) > 0 && (name_of_.count(id) == 0 || name_of_.at(id) == name);
  }
  void give_name(BlockId id, std::uint64_t name) {
    if (name_of_.count(id) == 0 && block_of_.emplace(name, id).second) name_of_[id] = name;
  }
  void reset() {
    empty_.insert(cached_free_.begin(), cached_free_.end());
    cached_free_.clear();
    block_of_.clear();
    name_of_.clear();
  }

 private:
  BlockId num_blocks_;
  std::set<BlockId> empty_;
  std::vector<BlockId> cached_free_;  // the least recently freed in front
  std::map<BlockId, int> owners_;
  std::map<std::uint64_t, BlockId> block_of_;
  std::map<BlockId, std::uint64_t> name_of_;
  std::int64_t evictions_ = 0;
};

BlockHash hash_of(std::uint64_t name) { return {name * 0x9e3779b97f4a7c15u, name}; }

void expect_same(const BlockPool& pool, const PoolModel& model) {
  ASSERT_EQ(pool.num_free_blocks(), model.num_free());
  ASSERT_EQ(pool.stats().cached_blocks, model.num_cached());
  ASSERT_EQ(pool.stats().evictions, model.evictions());
  for (BlockId id = 0; id < 14; ++id) ASSERT_EQ(pool.ref_count(id), model.owners(id)) << id;
  for (std::uint64_t name = 0; name < 12; ++name) ASSERT_EQ(pool.find_cached(hash_of(name)), model.find(name)) << name;
}

constexpr BlockId kBlocks = 12;

int below(std::mt19937& random, int end) { return static_cast<int>(random() % static_cast<unsigned>(end)); }

void allocate_some(BlockPool& pool, PoolModel& model, std::int64_t count) {
  const auto taken = pool.allocate(count);
  ASSERT_EQ(taken.ok(), count <= model.num_free());
  if (!taken.ok()) return;
  ASSERT_EQ(static_cast<std::int64_t>(taken->size()), count);
  model.allocated(*taken);
}

// One random call, allowed or not, of both.
void step(BlockPool& pool, PoolModel& model, std::mt19937& random) {
  Blocks some(static_cast<std::size_t>(below(random, 4)));
  for (BlockId& id : some) id = below(random, kBlocks + 2) - (below(random, 20) == 0 ? 1 : 0);
  const int choice = below(random, 100);
  if (choice < 25) {
    allocate_some(pool, model, below(random, 5));
  } else if (choice < 45) {
    const bool allowed = model.can_retain(some);
    ASSERT_EQ(pool.retain(some).ok(), allowed);
    if (allowed) model.retain(some);
  } else if (choice < 80) {
    const bool allowed = model.can_release(some);
    ASSERT_EQ(pool.release(some).ok(), allowed);
    if (allowed) model.release(some);
  } else if (choice < 99) {
    const BlockId id = below(random, kBlocks + 1);
    const auto name = static_cast<std::uint64_t>(below(random, 12));
    const bool allowed = model.can_name(id, name);
    ASSERT_EQ(pool.cache_block(id, hash_of(name)).ok(), allowed);
    if (allowed) model.give_name(id, name);
  } else {
    pool.reset_prefix_cache();
    model.reset();
  }
}

TEST(BlockPool, BehavesLikeTheModel) {
  std::mt19937 random(1);
  for (int round = 0; round < 50; ++round) {
    BlockPool pool = *BlockPool::create(kBlocks);
    PoolModel model(kBlocks);
    for (int i = 0; i < 400; ++i) {
      ASSERT_NO_FATAL_FAILURE(step(pool, model, random)) << "round " << round << " step " << i;
      ASSERT_NO_FATAL_FAILURE(expect_same(pool, model)) << "round " << round << " step " << i;
    }
  }
}

TEST(BlockPool, NeverHandsOutTheNullBlock) {
  BlockPool pool = *BlockPool::create(5);
  Blocks all = *pool.allocate(4);
  std::sort(all.begin(), all.end());
  EXPECT_EQ(all, (Blocks{1, 2, 3, 4}));
  const Status none = pool.allocate(1).status();
  EXPECT_EQ(none.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(none.message(), "count: want at most the 0 free blocks, got 1");
}

TEST(BlockPool, TheEndOfASequenceIsReusedFirst) {
  BlockPool pool = *BlockPool::create(8);
  const Blocks blocks = *pool.allocate(3);
  ASSERT_TRUE(pool.release(blocks).ok());
  EXPECT_EQ(*pool.allocate(2), (Blocks{blocks[2], blocks[1]}));
}

TEST(BlockPool, ErrorsNameTheBlock) {
  BlockPool pool = *BlockPool::create(4);
  const Blocks one = *pool.allocate(1);
  EXPECT_EQ(pool.retain(Blocks{0}).message(), "blocks[0]: want a block in [1, 4), got 0");
  EXPECT_EQ(pool.release(Blocks{one[0], 4}).message(), "blocks[1]: want a block in [1, 4), got 4");
  EXPECT_NE(pool.release(Blocks{one[0], one[0]}).message().find("blocks[1]: want a block with an owner"),
            std::string::npos);
  EXPECT_EQ(pool.ref_count(one[0]), 1);
  EXPECT_FALSE(pool.allocate(-1).ok());
  EXPECT_FALSE(BlockPool::create(0).ok());
  EXPECT_FALSE(BlockPool::create(std::int64_t{1} << 40).ok());
}

TEST(BlockHashes, DependOnEverythingBefore) {
  std::vector<std::int32_t> tokens(64);
  std::iota(tokens.begin(), tokens.end(), 100);
  const auto hashes = hash_blocks(tokens, 16);
  ASSERT_EQ(hashes.size(), 4u);
  EXPECT_EQ(hashes[1], hash_block(hashes[0], std::span(tokens).subspan(16, 16)));
  for (std::size_t changed = 0; changed < tokens.size(); ++changed) {
    std::vector<std::int32_t> other = tokens;
    other[changed] ^= 1;
    const auto others = hash_blocks(other, 16);
    for (std::size_t i = 0; i < 4; ++i) EXPECT_EQ(others[i] == hashes[i], i < changed / 16) << changed << " " << i;
  }
  EXPECT_FALSE(hash_blocks(tokens, 16, 1)[0] == hashes[0]);
  EXPECT_EQ(hash_blocks(std::span(tokens).first(63), 16).size(), 3u);
  EXPECT_FALSE(hash_block({}, std::vector<std::int32_t>{0}) == hash_block({}, std::vector<std::int32_t>{0, 0}));
}

// One flipped bit of a token changes about half of the bits of each word.
TEST(BlockHashes, SpreadChanges) {
  std::vector<std::int32_t> tokens(16, 7);
  const BlockHash hash = hash_block({}, tokens);
  double low = 0.0, high = 0.0;
  for (std::size_t i = 0; i < 16; ++i) {
    for (int bit = 0; bit < 32; ++bit) {
      std::vector<std::int32_t> other = tokens;
      other[i] ^= static_cast<std::int32_t>(1u << bit);
      const BlockHash changed = hash_block({}, other);
      low += __builtin_popcountll(hash.low ^ changed.low);
      high += __builtin_popcountll(hash.high ^ changed.high);
    }
  }
  EXPECT_NEAR(low / 512.0, 32.0, 1.0);
  EXPECT_NEAR(high / 512.0, 32.0, 1.0);
}

TEST(BlockHashes, SimilarBlocksDoNotCollide) {
  std::set<std::uint64_t> lows, highs;
  std::int64_t count = 0;
  for (std::int32_t a = 0; a < 300; ++a) {
    for (std::int32_t b = 0; b < 300; ++b, ++count) {
      const BlockHash hash = hash_block({}, std::vector<std::int32_t>{a, b, 0, 0});
      lows.insert(hash.low);
      highs.insert(hash.high);
    }
  }
  EXPECT_EQ(static_cast<std::int64_t>(lows.size()), count);
  EXPECT_EQ(static_cast<std::int64_t>(highs.size()), count);
}

TEST(PrefixCache, FindsTheLongestPrefix) {
  BlockPool pool = *BlockPool::create(20);
  PrefixCache cache(pool, 4);
  std::vector<std::int32_t> tokens(14);
  std::iota(tokens.begin(), tokens.end(), 0);
  EXPECT_TRUE(cache.acquire_prefix(tokens)->empty());
  const Blocks blocks = *pool.allocate(4);
  ASSERT_TRUE(cache.commit(tokens, blocks, 10).ok());  // two full blocks
  EXPECT_EQ(pool.stats().cached_blocks, 2);
  EXPECT_EQ(*cache.acquire_prefix(tokens), (Blocks{blocks[0], blocks[1]}));
  EXPECT_EQ(pool.ref_count(blocks[0]), 2);
  // A sequence that is cached whole gives up its last block.
  EXPECT_EQ(*cache.acquire_prefix(std::span(tokens).first(8)), (Blocks{blocks[0]}));
  EXPECT_EQ(cache.queried_tokens(), 14 + 14 + 8);
  EXPECT_EQ(cache.hit_tokens(), 0 + 8 + 4);
  EXPECT_TRUE(cache.acquire_prefix(tokens, 1)->empty());  // another adapter
  tokens[5] = 99;
  EXPECT_EQ(cache.acquire_prefix(tokens)->size(), 1u);
}

TEST(PrefixCache, FreedBlocksAreFoundUntilTheyAreNeeded) {
  BlockPool pool = *BlockPool::create(5);
  PrefixCache cache(pool, 2);
  const std::vector<std::int32_t> tokens{1, 2, 3, 4, 5, 6};
  const Blocks blocks = *pool.allocate(3);
  ASSERT_TRUE(cache.commit(tokens, blocks, 6).ok());
  ASSERT_TRUE(pool.release(blocks).ok());
  EXPECT_EQ(pool.num_free_blocks(), 4);
  const Blocks again = *cache.acquire_prefix(tokens);
  EXPECT_EQ(again, (Blocks{blocks[0], blocks[1]}));
  ASSERT_TRUE(pool.release(again).ok());
  // One block was never used; the next one evicts the end of the prefix, which was freed first.
  ASSERT_TRUE(pool.allocate(2).ok());
  EXPECT_EQ(pool.stats().evictions, 1);
  EXPECT_EQ(cache.acquire_prefix(tokens)->size(), 2u);
}

TEST(PrefixCache, ErrorsNameNothing) {
  BlockPool pool = *BlockPool::create(9);
  PrefixCache cache(pool, 2);
  const std::vector<std::int32_t> tokens{1, 2, 3, 4, 5, 6};
  const Blocks blocks = *pool.allocate(3);
  EXPECT_NE(cache.commit(tokens, blocks, 7).message().find("num_computed_tokens: want [0, 6]"), std::string::npos);
  EXPECT_NE(cache.commit(tokens, std::span(blocks).first(2), 6).message().find("blocks: want at least 3"),
            std::string::npos);
  EXPECT_FALSE(cache.commit(tokens, Blocks{blocks[0], blocks[1], 8}, 6).ok());
  EXPECT_FALSE(cache.commit(tokens, Blocks{blocks[0], blocks[1], blocks[0]}, 6).ok());
  EXPECT_EQ(pool.stats().cached_blocks, 0);
  ASSERT_TRUE(cache.commit(tokens, blocks, 6).ok());
  ASSERT_TRUE(cache.commit(tokens, blocks, 6).ok());  // the same again
  // Another sequence's copy of the same prefix stays unnamed.
  const Blocks copies = *pool.allocate(3);
  ASSERT_TRUE(cache.commit(tokens, copies, 6).ok());
  EXPECT_EQ(pool.find_cached(hash_blocks(tokens, 2)[0]), blocks[0]);
  const std::vector<std::int32_t> other{9, 9};
  EXPECT_NE(cache.commit(other, blocks, 2).message().find("cached under another"), std::string::npos);
  EXPECT_FALSE(PrefixCache(pool, 0).acquire_prefix(tokens).ok());
}

}  // namespace
}  // namespace quire
