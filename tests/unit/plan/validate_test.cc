// validate_batch: a good batch passes, and each way to be wrong gets a message that names the request.
#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "unit/plan/batch_fixture.h"

namespace quire {
namespace {

// Three requests, [1, 5, 3] new tokens, in blocks of 4.
Batch good_batch() { return Batch({1, 5, 3}, {9, 5, 12}); }

using Change = std::function<void(Batch&, CommonAttentionMetadata&, BatchLimits&)>;

std::string error_of(const Change& change) {
  Batch batch = good_batch();
  CommonAttentionMetadata common = batch.common();
  BatchLimits limits = batch.limits();
  change(batch, common, limits);
  const Status status = validate_batch(common, limits);
  return status.ok() ? "ok" : status.message();
}

// The common metadata is made after the change.
std::string error_of_arrays(const std::function<void(Batch&)>& change) {
  Batch batch = good_batch();
  change(batch);
  const Status status = validate_batch(batch.common(), batch.limits());
  return status.ok() ? "ok" : status.message();
}

TEST(ValidateBatch, AcceptsGoodBatches) {
  EXPECT_EQ(error_of([](Batch&, CommonAttentionMetadata&, BatchLimits&) {}), "ok");
  Batch empty({}, {});
  EXPECT_TRUE(validate_batch(empty.common(), empty.limits()).ok());
  Batch padded({3, 0, 0}, {3, 0, 0});
  EXPECT_TRUE(validate_batch(padded.common(), padded.limits()).ok());
}

TEST(ValidateBatch, UpperBoundsOfLengthsAreTaken) {
  EXPECT_EQ(error_of([](Batch&, CommonAttentionMetadata& common, BatchLimits&) {
              common.max_query_len = 100;
              common.max_seq_len = 1000;
            }),
            "ok");
}

TEST(ValidateBatch, Starts) {
  EXPECT_EQ(error_of_arrays([](Batch& batch) { batch.query_start_loc[0] = 1; }),
            "query_start_loc: want it to start with 0, got 1");
  EXPECT_EQ(error_of_arrays([](Batch& batch) { batch.query_start_loc[2] = 0; }),
            "query_start_loc: request 1: want an end >= its start 1, got 0");
  EXPECT_EQ(error_of([](Batch&, CommonAttentionMetadata& common, BatchLimits&) { common.num_actual_tokens = 8; }),
            "query_start_loc: want it to end at num_actual_tokens = 8, got 9");
  EXPECT_EQ(error_of([](Batch&, CommonAttentionMetadata& common, BatchLimits&) { common.query_start_loc_cpu = {}; }),
            "query_start_loc: want 4 entries, got 0");
  EXPECT_EQ(error_of([](Batch&, CommonAttentionMetadata& common, BatchLimits&) { common.num_reqs = -1; }),
            "num_reqs: want at least 0, got -1");
  EXPECT_EQ(error_of([](Batch&, CommonAttentionMetadata& common, BatchLimits&) {
              common.num_reqs = std::numeric_limits<std::int32_t>::max();
            }),
            "query_start_loc: want 2147483648 entries, got 4");
}

TEST(ValidateBatch, Lengths) {
  EXPECT_EQ(error_of_arrays([](Batch& batch) { batch.seq_lens[1] = 4; }),
            "seq_lens: request 1: want at least its query_len 5, got 4");
  EXPECT_EQ(error_of_arrays([](Batch& batch) { batch.seq_lens[2] = -1; }),
            "seq_lens: request 2: want at least 0, got -1");
  EXPECT_EQ(error_of([](Batch&, CommonAttentionMetadata& common, BatchLimits&) { common.seq_lens_cpu = {}; }),
            "seq_lens: want 3 entries, got 0");
  EXPECT_EQ(error_of([](Batch&, CommonAttentionMetadata& common, BatchLimits&) { common.max_query_len = 4; }),
            "max_query_len: want at least 5, got 4");
  EXPECT_EQ(error_of([](Batch&, CommonAttentionMetadata& common, BatchLimits&) { common.max_seq_len = 11; }),
            "max_seq_len: want at least 12, got 11");
  EXPECT_EQ(error_of([](Batch& batch, CommonAttentionMetadata&, BatchLimits& limits) {
              batch.seq_lens[1] = 1;
              limits.context = ContextRule::kUnchecked;
            }),
            "ok");
}

TEST(ValidateBatch, BlockTable) {
  EXPECT_EQ(error_of_arrays([](Batch& batch) { batch.block_table[static_cast<std::size_t>(batch.width) + 1] = -1; }),
            "block_table: request 1: block 1: want an id in [0, 13), got -1");
  EXPECT_EQ(error_of_arrays([](Batch& batch) { batch.block_table[static_cast<std::size_t>(batch.width) * 2] = 13; }),
            "block_table: request 2: block 0: want an id in [0, 13), got 13");
  EXPECT_EQ(error_of_arrays([](Batch& batch) { batch.seq_lens[0] = 17; }),
            "block_table: request 0: want 5 blocks for seq_len 17, got a table of 4");
  EXPECT_EQ(
      error_of([](Batch&, CommonAttentionMetadata& common, BatchLimits&) { common.block_table_tensor.shape[0] = 2; }),
      "block_table.shape: want at least 3 rows, got [2, 4]");
  EXPECT_EQ(error_of([](Batch&, CommonAttentionMetadata& common, BatchLimits&) {
              common.block_table_tensor.dtype = DType::kInt64;
            }),
            "block_table.dtype: want int32, got int64");
  EXPECT_EQ(error_of([](Batch&, CommonAttentionMetadata&, BatchLimits& limits) { limits.block_size = 0; }),
            "block_size: want at least 1, got 0");
  EXPECT_EQ(error_of([](Batch&, CommonAttentionMetadata&, BatchLimits& limits) { limits.num_blocks = -5; }),
            "num_blocks: want at least 0, got -5");
  EXPECT_EQ(error_of([](Batch&, CommonAttentionMetadata&, BatchLimits& limits) {
              limits.num_blocks = std::numeric_limits<std::int64_t>::max() / 2;
            }),
            "num_blocks * block_size: want a product below 2^63, got 4611686018427387903 * 4");
}

TEST(ValidateBatch, BlocksThatNoTokenUsesAreNotLookedAt) {
  EXPECT_EQ(error_of_arrays([](Batch& batch) { batch.block_table[static_cast<std::size_t>(batch.width) + 2] = -7; }),
            "ok");
}

TEST(ValidateBatch, Slots) {
  EXPECT_EQ(error_of_arrays([](Batch& batch) { batch.slots[3] = -1; }), "ok");
  EXPECT_EQ(error_of_arrays([](Batch& batch) { batch.slots[3] = -2; }),
            "slot_mapping: request 1: token 3: want a slot in [-1, 52), got -2");
  EXPECT_EQ(error_of_arrays([](Batch& batch) { batch.slots[8] = 52; }),
            "slot_mapping: request 2: token 8: want a slot in [-1, 52), got 52");
  EXPECT_EQ(error_of_arrays([](Batch& batch) { batch.slots.pop_back(); }),
            "slot_mapping.shape: want at least 9 slots, got [8]");
}

TEST(ValidateBatch, TablesOnADeviceAreCheckedForTheirShape) {
  const auto on_device = [](Batch& batch, CommonAttentionMetadata& common, BatchLimits&) {
    batch.block_table.assign(batch.block_table.size(), -9);
    batch.slots.assign(batch.slots.size(), -9);
    common.block_table_tensor.device.type = DeviceType::kCuda;
    common.slot_mapping.device.type = DeviceType::kCuda;
  };
  EXPECT_EQ(error_of(on_device), "ok");
  EXPECT_EQ(error_of([&](Batch& batch, CommonAttentionMetadata& common, BatchLimits& limits) {
              on_device(batch, common, limits);
              limits.block_size = 2;
            }),
            "block_table: request 0: want 5 blocks for seq_len 9, got a table of 4");
}

TEST(ValidateBatch, OptionalArrays) {
  const std::vector<std::uint8_t> two = {1, 0};
  const std::vector<std::int32_t> four = {1, 2, 3, 4};
  EXPECT_EQ(error_of([&](Batch&, CommonAttentionMetadata& common, BatchLimits&) { common.causal_per_seq = two; }),
            "causal_per_seq: want 3 entries, got 2");
  EXPECT_EQ(error_of([&](Batch&, CommonAttentionMetadata& common, BatchLimits&) { common.is_prefilling = two; }),
            "is_prefilling: want 3 entries, got 2");
  EXPECT_EQ(
      error_of([&](Batch&, CommonAttentionMetadata& common, BatchLimits&) { common.num_computed_tokens_cpu = four; }),
      "num_computed_tokens: want 3 entries, got 4");
  EXPECT_EQ(
      error_of([&](Batch&, CommonAttentionMetadata& common, BatchLimits&) { common.encoder_seq_lens_cpu = four; }),
      "encoder_seq_lens: want 3 entries, got 4");
}

TEST(ValidateBatch, DeviceCopiesOfLengths) {
  std::vector<std::int32_t> copy(8);
  EXPECT_EQ(error_of([&](Batch&, CommonAttentionMetadata& common, BatchLimits&) {
              common.query_start_loc = make_tensor(copy.data(), DType::kInt32, {3}).value();
            }),
            "query_start_loc.shape: want [4], got [3]");
  EXPECT_EQ(error_of([&](Batch&, CommonAttentionMetadata& common, BatchLimits&) {
              common.seq_lens = make_tensor(copy.data(), DType::kFloat32, {3}).value();
            }),
            "seq_lens.dtype: want int32, got float32");
}

TEST(ValidateBatch, MmRanges) {
  const std::vector<MmRange> ranges = {{0, 3}, {5, 5}, {-4, 2}, {1, std::numeric_limits<std::int32_t>::max()}};
  const auto with = [&](std::vector<std::int32_t> starts) {
    return error_of([&](Batch&, CommonAttentionMetadata& common, BatchLimits&) {
      common.mm_ranges = ranges;
      common.mm_range_start = starts;
    });
  };
  EXPECT_EQ(with({0, 1, 2, 2}), "ok");
  EXPECT_EQ(with({0, 1, 1, 3}), "mm_ranges: request 2: want positions in [0, 2^31 - 1), got (-4, 2)");
  EXPECT_EQ(with({0, 1, 0, 2}), "mm_range_start: request 2: want 1 to 4, got 0");
  EXPECT_EQ(with({0, 1, 2, 5}), "mm_range_start: request 3: want 2 to 4, got 5");
  EXPECT_EQ(with({0, 1, 2}), "mm_range_start: want 4 entries, got 3");
  EXPECT_EQ(with({-1, 1, 2, 2}), "mm_range_start: request 0: want 0 to 4, got -1");
  const std::vector<MmRange> far = {{1, std::numeric_limits<std::int32_t>::max()}};
  EXPECT_EQ(error_of([&](Batch&, CommonAttentionMetadata& common, BatchLimits&) {
              static const std::vector<std::int32_t> kStarts = {0, 1, 1, 1};
              common.mm_ranges = far;
              common.mm_range_start = kStarts;
            }),
            "mm_ranges: request 0: want positions in [0, 2^31 - 1), got (1, 2147483647)");
}

TEST(ValidateBatch, TreesHaveTheSizeOfTheirRequest) {
  const TokenTree tree = TokenTree::chain(4).value();
  const std::vector<const TokenTree*> good = {nullptr, &tree, nullptr};
  const std::vector<const TokenTree*> bad = {nullptr, nullptr, &tree};
  EXPECT_EQ(error_of([&](Batch&, CommonAttentionMetadata& common, BatchLimits&) { common.trees = good; }), "ok");
  EXPECT_EQ(error_of([&](Batch&, CommonAttentionMetadata& common, BatchLimits&) { common.trees = bad; }),
            "trees: request 2: want a tree of its query_len 3, got one of 5 nodes");
}

TEST(ValidateBatch, EncoderBatchesHaveNoTable) {
  Batch batch({3, 4}, {3, 4});
  CommonAttentionMetadata common = batch.common();
  common.block_table_tensor = {};
  common.slot_mapping = {};
  EXPECT_TRUE(validate_batch(common, {}).ok());
}

}  // namespace
}  // namespace quire
