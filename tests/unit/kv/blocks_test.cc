// Tests of swap_blocks and copy_blocks: every cache format against a copy of vectors one by one.
#include <gtest/gtest.h>

#include "unit/kv/cache_model.h"

namespace quire {
namespace {

using kv_test::all_cases;
using kv_test::CacheCase;
using kv_test::CacheModel;
using kv_test::Place;

// Fills the cache with bytes that differ everywhere.
void fill(CacheModel& model, unsigned seed) {
  std::mt19937 random(seed);
  for (auto* buffer : {&model.cache(), &model.scales(0), &model.scales(1)}) {
    const std::size_t size = buffer->bytes().size();
    for (std::size_t i = 0; i < size; ++i) buffer->data()[i] = static_cast<unsigned char>(random());
  }
}

struct Contents {
  std::vector<unsigned char> cache;
  std::vector<unsigned char> scales[2];
};

Contents contents_of(CacheModel& model) {
  return {model.cache().bytes(), {model.scales(0).bytes(), model.scales(1).bytes()}};
}

// Copies all vectors and scales of a block from `from` into `to`.
void expect_copy(CacheModel& model, const Contents& from, Contents& to, BlockPair pair) {
  const KVCacheSpec& spec = model.spec();
  for (std::int64_t offset = 0; offset < spec.block_size; ++offset) {
    for (std::int64_t head = 0; head < spec.num_kv_heads; ++head) {
      for (int kv = 0; kv < 2; ++kv) {
        const Place source{kv, head, pair.source, offset};
        const Place target{kv, head, pair.destination, offset};
        const std::int64_t bytes = model.size_of(kv) * model.element_bytes() + (model.inline_scales() ? 4 : 0);
        std::memcpy(to.cache.data() + model.vector_offset(target), from.cache.data() + model.vector_offset(source),
                    static_cast<std::size_t>(bytes));
        if (!model.separate_scales()) continue;
        std::memcpy(to.scales[kv].data() + model.scale_index(target) * 4,
                    from.scales[kv].data() + model.scale_index(source) * 4, 4);
      }
    }
  }
}

void expect_contents(CacheModel& model, const Contents& expected) {
  EXPECT_EQ(model.cache().bytes(), expected.cache);
  EXPECT_EQ(model.scales(0).bytes(), expected.scales[0]);
  EXPECT_EQ(model.scales(1).bytes(), expected.scales[1]);
  EXPECT_TRUE(model.guards_intact());
}

TEST(CopyBlocks, ReadsTheStateBeforeTheCall) {
  const std::vector<std::vector<BlockPair>> lists = {
      {},
      {{1, 1}},
      {{0, 4}},
      {{0, 1}, {1, 2}, {2, 3}},          // a chain in the order that would overwrite
      {{0, 1}, {1, 0}},                  // an exchange
      {{0, 1}, {1, 2}, {2, 0}, {1, 4}},  // a cycle with a branch
      {{3, 0}, {3, 1}, {3, 2}, {3, 4}},  // one source
      {{0, 1}, {1, 0}, {2, 3}, {3, 2}, {4, 4}},
  };
  for (const CacheCase& test : all_cases(DType::kBFloat16)) {
    SCOPED_TRACE(test.name());
    CacheModel model(test);
    const KVSource cache = *model.bind();
    for (const auto& pairs : lists) {
      fill(model, 5);
      const Contents before = contents_of(model);
      Contents expected = before;
      for (const BlockPair& pair : pairs) expect_copy(model, before, expected, pair);
      const Status status = copy_blocks({&cache, 1}, pairs);
      ASSERT_TRUE(status.ok()) << status.to_string();
      expect_contents(model, expected);
    }
  }
}

TEST(CopyBlocks, RandomMapsInSeveralLayers) {
  CacheCase test{.spec = {.num_blocks = 30, .block_size = 2, .num_kv_heads = 2, .head_size = 8}};
  std::mt19937 random(11);
  for (int round = 0; round < 200; ++round) {
    CacheModel first(test);
    CacheModel second(test);
    fill(first, 1);
    fill(second, 2);
    std::vector<BlockPair> pairs;
    for (std::int64_t block = 0; block < 30; ++block) {
      if (random() % 3 != 0) pairs.push_back({static_cast<std::int64_t>(random() % 30), block});
    }
    std::shuffle(pairs.begin(), pairs.end(), random);
    Contents expected[2] = {contents_of(first), contents_of(second)};
    const Contents before[2] = {expected[0], expected[1]};
    for (const BlockPair& pair : pairs) {
      expect_copy(first, before[0], expected[0], pair);
      expect_copy(second, before[1], expected[1], pair);
    }
    const KVSource caches[] = {*first.bind(), *second.bind()};
    ASSERT_TRUE(copy_blocks(caches, pairs).ok());
    expect_contents(first, expected[0]);
    expect_contents(second, expected[1]);
  }
}

TEST(CopyBlocks, WrongPairsChangeNothing) {
  CacheModel model({.spec = {.num_blocks = 4, .num_kv_heads = 2, .head_size = 8}});
  fill(model, 3);
  const Contents before = contents_of(model);
  const KVSource cache = *model.bind();
  const auto message = [&](std::vector<BlockPair> pairs) { return copy_blocks({&cache, 1}, pairs).message(); };
  EXPECT_EQ(message({{0, 1}, {4, 2}}), "pairs[1].source: want a block in [0, 4), got 4");
  EXPECT_EQ(message({{0, -1}}), "pairs[0].destination: want a block in [0, 4), got -1");
  EXPECT_EQ(message({{0, 1}, {2, 1}}), "pairs[1].destination: want each block once, got block 1 again after pairs[0]");
  expect_contents(model, before);
  KVSource elsewhere = cache;
  elsewhere.device = {DeviceType::kCuda, 1};
  const Status status = copy_blocks({&elsewhere, 1}, std::vector<BlockPair>{{0, 1}});
  EXPECT_EQ(status.code(), StatusCode::kUnsupported);
  EXPECT_NE(status.message().find("cuda:1"), std::string::npos) << status.message();
}

TEST(SwapBlocks, CopiesBetweenCachesOfEveryFormat) {
  const std::vector<BlockPair> pairs{{0, 4}, {1, 0}, {1, 3}, {4, 1}};
  for (const CacheCase& test : all_cases(DType::kFloat32)) {
    SCOPED_TRACE(test.name());
    CacheModel source(test);
    CacheModel target(test);
    fill(source, 6);
    fill(target, 7);
    const Contents before = contents_of(source);
    Contents expected = contents_of(target);
    for (const BlockPair& pair : pairs) expect_copy(source, before, expected, pair);
    ASSERT_TRUE(swap_blocks(*source.bind(), *target.bind(), pairs).ok());
    expect_contents(target, expected);
    expect_contents(source, before);
  }
}

TEST(SwapBlocks, LayoutsMayDifferAndCountsToo) {
  CacheCase test{.spec = {.num_blocks = 3, .block_size = 4, .num_kv_heads = 2, .head_size = 8}};
  CacheModel source(test);
  test.spec.layout = KVCacheLayout::kHND;
  test.spec.num_blocks = 6;
  CacheModel target(test);
  fill(source, 8);
  ASSERT_TRUE(swap_blocks(*source.bind(), *target.bind(), std::vector<BlockPair>{{2, 5}}).ok());
  for (std::int64_t head = 0; head < 2; ++head) {
    for (std::int64_t offset = 0; offset < 4; ++offset) {
      EXPECT_EQ(std::memcmp(source.cache().data() + source.vector_offset({1, head, 2, offset}),
                            target.cache().data() + target.vector_offset({1, head, 5, offset}), 16),
                0);
    }
  }
}

TEST(SwapBlocks, WrongArguments) {
  CacheCase test{.spec = {.num_blocks = 3, .block_size = 4, .num_kv_heads = 2, .head_size = 8}};
  CacheModel source(test);
  test.spec.head_size = 16;
  CacheModel wider(test);
  EXPECT_EQ(swap_blocks(*source.bind(), *wider.bind(), {}).message(),
            "destination.head_size: want the source's, 8, got 16");
  const KVSource cache = *source.bind();
  EXPECT_NE(swap_blocks(cache, cache, {}).message().find("copy_blocks"), std::string::npos);
  test.spec.head_size = 8;
  CacheModel target(test);
  EXPECT_EQ(swap_blocks(cache, *target.bind(), std::vector<BlockPair>{{3, 0}}).message(),
            "pairs[0].source: want a block in [0, 3), got 3");
  EXPECT_NE(
      swap_blocks(cache, *target.bind(), std::vector<BlockPair>{{0, 1}, {2, 1}}).message().find("each block once"),
      std::string::npos);
}

}  // namespace
}  // namespace quire
