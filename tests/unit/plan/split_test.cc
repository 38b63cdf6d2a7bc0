// Decode and prefill splits and the swaps that bring a batch into their order.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "unit/plan/batch_fixture.h"

namespace quire {
namespace {

using Lens = std::vector<std::int32_t>;

Result<DecodePrefillSplit> split(Lens query_lens, Lens seq_lens, std::int32_t threshold = 1,
                                 DecodeUniformity uniformity = DecodeUniformity::kAnyLength) {
  Batch batch(std::move(query_lens), std::move(seq_lens));
  return split_decodes_and_prefills(batch.common(), threshold, uniformity);
}

DecodePrefillSplit counts(std::int32_t decodes, std::int32_t prefills, std::int32_t decode_tokens,
                          std::int32_t prefill_tokens) {
  return {.num_decodes = decodes,
          .num_prefills = prefills,
          .num_decode_tokens = decode_tokens,
          .num_prefill_tokens = prefill_tokens};
}

TEST(SplitDecodesAndPrefills, CountsByLength) {
  EXPECT_EQ(split({1, 1, 33, 17}, {37, 64, 33, 50}).value(), counts(2, 2, 2, 50));
  EXPECT_EQ(split({1, 1}, {37, 64}).value(), counts(2, 0, 2, 0));
  EXPECT_EQ(split({8, 3}, {8, 9}).value(), counts(0, 2, 0, 11));
  EXPECT_EQ(split({8, 8, 8, 33, 17}, {40, 25, 8, 33, 60}, 8).value(), counts(3, 2, 24, 50));
  EXPECT_EQ(split({3, 3}, {43, 20}, 0).value(), counts(0, 2, 0, 6));
  EXPECT_EQ(split({3, 1, 4, 9}, {3, 10, 40, 9}, 4).value(), counts(3, 1, 8, 9));  // a fresh prompt of 3 is a decode
  EXPECT_EQ(split({}, {}).value(), counts(0, 0, 0, 0));
}

TEST(SplitDecodesAndPrefills, FreshPromptsAndPaddingMayStandBehindPrefills) {
  EXPECT_EQ(split({1, 9, 1, 0}, {5, 30, 1, 0}).value(), counts(1, 3, 1, 10));
}

TEST(SplitDecodesAndPrefills, ADecodeBehindAPrefillIsNamed) {
  EXPECT_EQ(
      split({1, 5, 7, 1}, {37, 18, 9, 64}).status().message(),
      "batch order: request 3: want decodes (at most 1 new tokens) in front, got one of 1 behind request 1 with 5");
}

TEST(SplitDecodesAndPrefills, UniformDecodesMustBeEqual) {
  const auto uniform = DecodeUniformity::kUniform;
  EXPECT_EQ(split({3, 3, 3}, {9, 9, 9}, 4, uniform).value(), counts(3, 0, 9, 0));
  EXPECT_EQ(split({3, 3, 0, 0}, {9, 9, 0, 0}, 4, uniform).value(), counts(4, 0, 6, 0));
  EXPECT_EQ(split({3, 2, 3}, {9, 9, 9}, 4, uniform).value(), counts(1, 2, 3, 5));
  EXPECT_EQ(split({3, 3, 20}, {9, 9, 20}, 4, uniform).value(), counts(2, 1, 6, 20));
  EXPECT_EQ(split({3, 0, 20}, {9, 0, 20}, 4, uniform).value(), counts(1, 2, 3, 20));
  EXPECT_EQ(split({5, 3}, {9, 9}, 4, uniform).value(), counts(0, 2, 0, 8));
  EXPECT_EQ(split({1, 1, 2}, {9, 9, 9}, 1, uniform).value(), counts(2, 1, 2, 2));  // threshold 1 is uniform anyway
}

TEST(SplitDecodesAndPrefills, PaddedUniformBatchesCountTheirPadding) {
  Batch batch({3, 3, 0}, {9, 9, 0});
  CommonAttentionMetadata common = batch.common();
  common.num_actual_tokens = 9;
  EXPECT_EQ(split_decodes_and_prefills(common, 4, DecodeUniformity::kUniform).value(), counts(3, 0, 9, 0));
  common.num_actual_tokens = 8;
  EXPECT_EQ(split_decodes_and_prefills(common, 4, DecodeUniformity::kUniform).status().message(),
            "num_actual_tokens: want 6 or 9 for uniform decodes, got 8");
}

TEST(SplitDecodesAndPrefills, BrokenStartsAreErrors) {
  Batch batch({1, 2}, {4, 4});
  batch.query_start_loc = {0, 3, 2};
  CommonAttentionMetadata common = batch.common();
  EXPECT_EQ(split_decodes_and_prefills(common).status().message(),
            "query_start_loc: request 1: want an end >= its start 3, got 2");
  common.query_start_loc_cpu = common.query_start_loc_cpu.first(2);
  EXPECT_EQ(split_decodes_and_prefills(common).status().message(), "query_start_loc: want 3 entries, got 2");
}

TEST(SplitDecodesPrefillsAndExtends, ThreeRegions) {
  Batch batch({1, 1, 5, 7, 20}, {9, 9, 30, 40, 20});
  const auto three = split_decodes_prefills_and_extends(batch.common()).value();
  EXPECT_EQ(three, (DecodePrefillExtendSplit{.num_decodes = 2,
                                             .num_extends = 2,
                                             .num_prefills = 1,
                                             .num_decode_tokens = 2,
                                             .num_extend_tokens = 12,
                                             .num_prefill_tokens = 20}));
  Batch extends({5, 7}, {30, 40});
  EXPECT_EQ(split_decodes_prefills_and_extends(extends.common()).value(),
            (DecodePrefillExtendSplit{.num_extends = 2, .num_extend_tokens = 12}));
  Batch prefills({5, 7}, {5, 7});
  EXPECT_EQ(split_decodes_prefills_and_extends(prefills.common()).value(),
            (DecodePrefillExtendSplit{.num_prefills = 2, .num_prefill_tokens = 12}));
  Batch decodes({1}, {7});
  EXPECT_EQ(split_decodes_prefills_and_extends(decodes.common()).value(),
            (DecodePrefillExtendSplit{.num_decodes = 1, .num_decode_tokens = 1}));
  Batch wrong({20, 5}, {20, 30});
  EXPECT_EQ(split_decodes_prefills_and_extends(wrong.common()).status().message(),
            "batch order: request 1: want extends before prefills, got 25 tokens of context behind the prefill request "
            "0");
}

Lens after_swaps(std::size_t size, const std::vector<std::pair<std::int32_t, std::int32_t>>& swaps) {
  Lens order(size);
  std::iota(order.begin(), order.end(), 0);
  for (const auto& [a, b] : swaps) std::swap(order[static_cast<std::size_t>(a)], order[static_cast<std::size_t>(b)]);
  return order;
}

TEST(ReorderSwaps, TwoRegionsMeetInTheMiddle) {
  const Lens scheduled = {5, 1, 7, 1, 1};
  const auto swaps =
      reorder_swaps({.num_scheduled_tokens = scheduled, .num_computed_tokens = {}}, ReorderForm::kTwoRegions);
  EXPECT_EQ(swaps, (std::vector<std::pair<std::int32_t, std::int32_t>>{{0, 4}, {2, 3}}));
  const Lens sorted = {1, 1, 9};
  EXPECT_TRUE(
      reorder_swaps({.num_scheduled_tokens = sorted, .num_computed_tokens = {}}, ReorderForm::kTwoRegions).empty());
}

TEST(ReorderSwaps, ThreeRegionsFollowThePermutation) {
  // prefill, decode, extend, decode, prefill: 0 and 3 are misplaced, 1 already stands among the decodes.
  const Lens scheduled = {8, 1, 6, 1, 1};
  const Lens computed = {0, 5, 9, 5, 0};
  const auto swaps =
      reorder_swaps({.num_scheduled_tokens = scheduled, .num_computed_tokens = computed}, ReorderForm::kThreeRegions);
  EXPECT_EQ(after_swaps(5, swaps), (Lens{3, 1, 2, 0, 4}));
  // prefill, prefill, extend, decode -> decode, extend, prefills in their order.
  const Lens more = {8, 8, 6, 1};
  const Lens known = {0, 0, 9, 5};
  EXPECT_EQ(after_swaps(4, reorder_swaps({.num_scheduled_tokens = more, .num_computed_tokens = known},
                                         ReorderForm::kThreeRegions)),
            (Lens{3, 2, 0, 1}));
}

TEST(ReorderSwaps, RandomBatchesEndInOrder) {
  std::mt19937 random(21);
  for (int i = 0; i < 500; ++i) {
    Lens scheduled;
    Lens computed;
    const std::size_t size = random() % 12;
    for (std::size_t req = 0; req < size; ++req) {
      scheduled.push_back(static_cast<std::int32_t>(random() % 6) + 1);
      computed.push_back(static_cast<std::int32_t>(random() % 3));
    }
    const std::int32_t threshold = static_cast<std::int32_t>(random() % 4) + 1;
    const ReorderInput input{
        .num_scheduled_tokens = scheduled, .num_computed_tokens = computed, .decode_threshold = threshold};
    const auto region = [&](ReorderForm form, std::int32_t req) {
      const bool is_short = scheduled[static_cast<std::size_t>(req)] <= threshold;
      const bool fresh = computed[static_cast<std::size_t>(req)] == 0;
      if (form == ReorderForm::kTwoRegions) return is_short ? 0 : 1;
      if (form == ReorderForm::kPrefillsFirst) return is_short && !fresh ? 1 : 0;
      return fresh ? 2 : (is_short ? 0 : 1);
    };
    for (auto form : {ReorderForm::kTwoRegions, ReorderForm::kThreeRegions, ReorderForm::kPrefillsFirst}) {
      const Lens order = after_swaps(size, reorder_swaps(input, form));
      Lens regions;
      Lens before;
      for (std::int32_t req : order) regions.push_back(region(form, req));
      EXPECT_TRUE(std::is_sorted(regions.begin(), regions.end()));
      // Who already stood in the right region stays.
      for (std::size_t at = 0; at < size; ++at) {
        if (form != ReorderForm::kTwoRegions && region(form, static_cast<std::int32_t>(at)) == regions[at]) {
          EXPECT_EQ(order[at], static_cast<std::int32_t>(at));
        }
      }
    }
  }
}

}  // namespace
}  // namespace quire
