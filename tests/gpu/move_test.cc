// Blocks and tokens that move between caches and inside them, and fresh scales, on the device against the host's.
#include <gtest/gtest.h>

#include <algorithm>
#include <span>
#include <string>
#include <vector>

#include "gpu/device_case.h"
#include "quire/cuda.h"
#include "quire/kv_cache.h"
#include "support/random.h"

namespace quire::testing {
namespace {

void expect_done(const Status& status) { ASSERT_TRUE(status.ok()) << status.to_string(); }

struct Form {
  KVCacheFormat format = KVCacheFormat::kBlockFirst;
  KVCacheLayout layout = KVCacheLayout::kNHD;
  KVCacheDType cache_dtype = KVCacheDType::kAuto;
  std::int32_t head_size = 64;
};

// A cache of random bytes on the host and the same on the device.
class TwinCache {
 public:
  TwinCache(const Form& form, std::int64_t num_blocks, std::uint64_t seed)
      : spec_{.format = form.format,
              .layout = form.layout,
              .cache_dtype = form.cache_dtype,
              .model_dtype = DType::kBFloat16,
              .num_blocks = num_blocks,
              .block_size = 16,
              .num_kv_heads = 4,
              .head_size = form.head_size},
        host_(static_cast<std::size_t>(*kv_cache_bytes(spec_))) {
    Random random(seed);
    for (std::byte& byte : host_) byte = static_cast<std::byte>(random.between(0, 255));
    Result<cuda::DeviceBuffer> buffer = cuda::DeviceBuffer::allocate(host_.size());
    expect_done(buffer.status());
    device_ = std::move(*buffer);
    expect_done(cuda::copy_to_device(device_.data(), host_.data(), host_.size(), nullptr));
  }

  KVSource on_host() { return bind(host_.data(), {}); }
  KVSource on_device() { return bind(device_.data(), kDevice); }
  // A cache of this form in other memory of the host.
  KVSource elsewhere(std::span<std::byte> memory) { return bind(memory.data(), {}); }
  const std::vector<std::byte>& host() const { return host_; }
  std::vector<std::byte> fetch() const {
    std::vector<std::byte> bytes(host_.size());
    expect_done(cuda::copy_to_host(bytes.data(), device_.data(), bytes.size(), nullptr));
    return bytes;
  }

 private:
  KVSource bind(void* data, Device device) {
    return bind_kv_cache(spec_, view_kv_cache(spec_, data, device).value(), {}).value();
  }

  KVCacheSpec spec_;
  std::vector<std::byte> host_;
  cuda::DeviceBuffer device_;
};

std::vector<BlockPair> random_pairs(std::int64_t num_blocks, std::size_t count, std::uint64_t seed) {
  std::vector<std::int64_t> from, to;
  for (std::int64_t id = 0; id < num_blocks; ++id) from.push_back(id), to.push_back(id);
  Random random(seed);
  random.shuffle(from);
  random.shuffle(to);
  std::vector<BlockPair> pairs;
  for (std::size_t i = 0; i < count; ++i) pairs.push_back({from[i], to[i]});
  return pairs;
}

class GpuMoves : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string missing = missing_device(); !missing.empty()) GTEST_SKIP() << missing;
  }

  static std::vector<Form> forms() {
    return {{},
            {.layout = KVCacheLayout::kHND},
            {.cache_dtype = KVCacheDType::kInt8PerTokenHead},
            {.layout = KVCacheLayout::kHND, .cache_dtype = KVCacheDType::kFp8PerTokenHead},
            {.format = KVCacheFormat::kKVFirst, .cache_dtype = KVCacheDType::kFp8E4M3, .head_size = 72},
            {.format = KVCacheFormat::kPackedKV, .head_size = 96},
            {.format = KVCacheFormat::kDifferential}};
  }
};

// More pairs than a launch takes, both ways, from and to the device, pinned memory and memory that is neither.
TEST_F(GpuMoves, SwapsBlocksWithAnyMemory) {
  constexpr std::int64_t kBlocks = 150;
  const std::vector<BlockPair> pairs = random_pairs(kBlocks, 140, 5);
  for (const Form& form : forms()) {
    TwinCache first(form, kBlocks, 1), second(form, kBlocks, 2);
    std::vector<std::byte> pageable = second.host();
    Result<cuda::HostBuffer> pinned = cuda::HostBuffer::allocate(pageable.size());
    expect_done(pinned.status());
    const std::span<std::byte> reached = pinned->bytes();
    std::copy(pageable.begin(), pageable.end(), reached.begin());
    expect_done(quire::swap_blocks(first.on_host(), second.on_host(), pairs));
    expect_done(cuda::swap_blocks(first.on_device(), second.on_device(), pairs, nullptr));
    EXPECT_EQ(second.fetch(), second.host());
    expect_done(cuda::swap_blocks(first.on_device(), first.elsewhere(pageable), pairs, nullptr));
    expect_done(cuda::synchronize(nullptr));
    EXPECT_EQ(pageable, second.host());
    expect_done(cuda::swap_blocks(first.on_device(), first.elsewhere(reached), pairs, nullptr));
    expect_done(cuda::synchronize(nullptr));
    EXPECT_TRUE(std::equal(reached.begin(), reached.end(), second.host().begin()));
    const std::vector<BlockPair> back = random_pairs(kBlocks, 130, 6);
    expect_done(cuda::swap_blocks(first.elsewhere(reached), first.on_device(), back, nullptr));
    expect_done(quire::swap_blocks(second.on_host(), first.on_host(), back));
    EXPECT_EQ(first.fetch(), first.host());
  }
}

TEST_F(GpuMoves, SwapsBlocksBetweenLayouts) {
  const std::vector<BlockPair> pairs = random_pairs(20, 20, 7);
  for (const KVCacheDType cache_dtype : {KVCacheDType::kAuto, KVCacheDType::kInt8PerTokenHead}) {
    TwinCache tokens({.cache_dtype = cache_dtype}, 20, 1);
    TwinCache heads({.layout = KVCacheLayout::kHND, .cache_dtype = cache_dtype}, 20, 2);
    expect_done(quire::swap_blocks(tokens.on_host(), heads.on_host(), pairs));
    expect_done(cuda::swap_blocks(tokens.on_device(), heads.on_device(), pairs, nullptr));
    EXPECT_EQ(heads.fetch(), heads.host());
  }
}

TEST_F(GpuMoves, CopiesChainsOfBlocks) {
  std::vector<BlockPair> chain;
  for (std::int64_t id = 0; id < 149; ++id) chain.push_back({id, id + 1});
  for (const Form& form : forms()) {
    TwinCache cache(form, 160, 3);
    const std::vector<KVSource> on_host = {cache.on_host()}, on_device = {cache.on_device()};
    expect_done(quire::copy_blocks(on_host, chain));
    expect_done(cuda::copy_blocks(on_device, chain, nullptr));
    EXPECT_EQ(cache.fetch(), cache.host());
  }
}

// Every block trades its place, in cycles of any length; blocks outside get copies of some of them.
TEST_F(GpuMoves, CopiesCyclesOfBlocks) {
  std::vector<BlockPair> pairs = random_pairs(150, 110, 9);
  const std::vector<BlockPair> hidden = {{203, 202}, {204, 203}, {205, 206}, {202, 210}, {206, 211}};
  pairs.insert(pairs.end(), hidden.begin(), hidden.end());
  pairs.insert(pairs.end(), {{160, 161}, {161, 160}, {170, 171}, {171, 172}, {172, 170}, {171, 180}});
  for (const Form& form : forms()) {
    TwinCache cache(form, 220, 8);
    const std::vector<KVSource> on_host = {cache.on_host()}, on_device = {cache.on_device()};
    expect_done(quire::copy_blocks(on_host, pairs));
    expect_done(cuda::copy_blocks(on_device, pairs, nullptr));
    EXPECT_EQ(cache.fetch(), cache.host());
  }
  std::vector<BlockPair> ring;
  for (std::int64_t id = 0; id < 140; ++id) ring.push_back({id, (id + 1) % 140});
  TwinCache cache({}, 140, 8);
  const std::vector<KVSource> on_device = {cache.on_device()};
  EXPECT_EQ(cuda::copy_blocks(on_device, ring, nullptr).code(), StatusCode::kUnsupported);
}

// Pairs in order: gaps that close, tokens that go on, and slots that trade places over a third one.
TEST_F(GpuMoves, MovesTokensAsTheHostDoes) {
  std::vector<SlotPair> pairs = {{5, 3}, {7, 5}, {8, 6}, {9, 7}, {40, 100}, {41, 40}, {100, 41}, {12, 12}};
  Random random(11);
  for (int i = 0; i < 400; ++i) pairs.push_back({random.between(0, 319), random.between(0, 319)});
  for (const Form& form : forms()) {
    TwinCache cache(form, 20, 4);
    const std::vector<KVSource> on_host = {cache.on_host()}, on_device = {cache.on_device()};
    expect_done(quire::move_tokens(on_host, pairs));
    expect_done(cuda::move_tokens(on_device, pairs, nullptr));
    EXPECT_EQ(cache.fetch(), cache.host());
  }
}

TEST_F(GpuMoves, ResetsScalesAlone) {
  for (const Form& form : forms()) {
    TwinCache cache(form, 20, 4);
    expect_done(quire::reset_kv_scales(cache.on_host()));
    expect_done(cuda::reset_kv_scales(cache.on_device(), nullptr));
    EXPECT_EQ(cache.fetch(), cache.host());
  }
}

void expect_refusal(const Status& status, StatusCode code, const std::string& message) {
  EXPECT_EQ(status.code(), code);
  EXPECT_NE(status.message().find(message), std::string::npos) << status.message();
}

TEST_F(GpuMoves, RefusesIdsOutOfRange) {
  TwinCache cache({}, 4, 1), smaller({}, 3, 2);
  const std::vector<KVSource> on_device = {cache.on_device()};
  const auto move = [&](SlotPair pair) {
    const std::vector<SlotPair> pairs = {{0, 1}, pair};
    return cuda::move_tokens(on_device, pairs, nullptr);
  };
  const auto copy = [&](BlockPair pair) {
    const std::vector<BlockPair> pairs = {{0, 1}, pair};
    return cuda::copy_blocks(on_device, pairs, nullptr);
  };
  const auto swap = [&](BlockPair pair) {
    const std::vector<BlockPair> pairs = {{0, 1}, pair};
    return cuda::swap_blocks(cache.on_device(), smaller.on_device(), pairs, nullptr);
  };
  expect_refusal(move({3, 64}), StatusCode::kOutOfRange, "pairs[1].destination: want [0, 64), got 64");
  expect_refusal(move({64, 3}), StatusCode::kOutOfRange, "pairs[1].source: want [0, 64), got 64");
  expect_refusal(move({-1, 3}), StatusCode::kOutOfRange, "pairs[1].source: want [0, 64), got -1");
  expect_refusal(copy({3, 4}), StatusCode::kOutOfRange, "pairs[1].destination: want [0, 4), got 4");
  expect_refusal(copy({4, 3}), StatusCode::kOutOfRange, "pairs[1].source: want [0, 4), got 4");
  expect_refusal(copy({3, -1}), StatusCode::kOutOfRange, "pairs[1].destination: want [0, 4), got -1");
  expect_refusal(swap({3, 3}), StatusCode::kOutOfRange, "pairs[1].destination: want [0, 3), got 3");
  expect_refusal(swap({4, 2}), StatusCode::kOutOfRange, "pairs[1].source: want [0, 4), got 4");
  expect_refusal(swap({-7, 2}), StatusCode::kOutOfRange, "pairs[1].source: want [0, 4), got -7");
  EXPECT_EQ(cache.fetch(), cache.host());
  EXPECT_EQ(smaller.fetch(), smaller.host());
}

TEST_F(GpuMoves, RefusesTwoSourcesOfOneBlock) {
  TwinCache cache({}, 4, 1), other({}, 4, 2);
  const std::vector<KVSource> on_device = {cache.on_device()};
  const std::vector<BlockPair> pairs = {{0, 2}, {1, 2}};
  EXPECT_EQ(cuda::copy_blocks(on_device, pairs, nullptr).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(cuda::swap_blocks(cache.on_device(), other.on_device(), pairs, nullptr).code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(cache.fetch(), cache.host());
  EXPECT_EQ(other.fetch(), other.host());
}

TEST_F(GpuMoves, RefusesCachesOfAnotherShapeOrPlace) {
  TwinCache cache({}, 4, 1);
  const std::vector<BlockPair> pair = {{0, 1}};
  const std::vector<SlotPair> slots = {{0, 1}};
  const std::vector<KVSource> on_host = {cache.on_host()};
  expect_refusal(cuda::move_tokens(on_host, slots, nullptr), StatusCode::kInvalidArgument, "want cuda");
  expect_refusal(cuda::copy_blocks(on_host, pair, nullptr), StatusCode::kInvalidArgument, "want cuda");
  TwinCache scaled({.cache_dtype = KVCacheDType::kInt8PerTokenHead}, 4, 2);
  expect_refusal(cuda::reset_kv_scales(scaled.on_host(), nullptr), StatusCode::kInvalidArgument, "want cuda");
  expect_refusal(cuda::swap_blocks(cache.on_device(), cache.on_device(), pair, nullptr), StatusCode::kInvalidArgument,
                 "another cache");
  for (const Form& form :
       {Form{.head_size = 128}, Form{.cache_dtype = KVCacheDType::kFp8E4M3},
        Form{.cache_dtype = KVCacheDType::kInt8PerTokenHead}, Form{.format = KVCacheFormat::kDifferential}}) {
    TwinCache other(form, 4, 3);
    expect_refusal(cuda::swap_blocks(cache.on_device(), other.on_device(), pair, nullptr), StatusCode::kInvalidArgument,
                   "destination: want a cache of the source's");
    EXPECT_EQ(other.fetch(), other.host());
  }
  EXPECT_EQ(cache.fetch(), cache.host());
}

}  // namespace
}  // namespace quire::testing
