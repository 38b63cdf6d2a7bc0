// make_metadata: what each kind of layer gets of a batch, and the prefill and decode parts.
#include "plan/make_metadata.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <thread>
#include <utility>

#include "unit/plan/batch_fixture.h"

namespace quire {
namespace {

using Lens = std::vector<std::int32_t>;

MetadataOptions options_for(const Batch& batch) {
  MetadataOptions options;
  options.limits = batch.limits();
  options.plan.rows_per_token = 4;
  return options;
}

std::string error_of(const CommonAttentionMetadata& common, const MetadataOptions& options) {
  const auto made = make_metadata(common, options);
  return made.ok() ? "ok" : made.status().message();
}

TEST(MakeMetadata, CopiesTheBatchAndPlansIt) {
  Batch batch({1, 5, 3}, {9, 5, 12});
  const AttentionMetadata made = make_metadata(batch.common(), options_for(batch)).value();
  EXPECT_EQ(made.num_reqs, 3);
  EXPECT_EQ(made.num_actual_tokens, 9);
  EXPECT_EQ(made.max_query_len, 5);
  EXPECT_EQ(made.max_seq_len, 12);
  EXPECT_EQ(made.query_start_loc, (Lens{0, 1, 6, 9}));
  EXPECT_EQ(made.seq_lens, (Lens{9, 5, 12}));
  EXPECT_EQ(made.block_table.data, batch.block_table.data());
  EXPECT_EQ(made.slot_mapping.data, batch.slots.data());
  EXPECT_EQ(made.num_blocks, batch.num_blocks);
  EXPECT_EQ(made.block_size, 4);
  EXPECT_TRUE(made.causal);
  EXPECT_EQ(made.plan.items.size(), 3u);
  EXPECT_EQ(made.plan_config.rows_per_token, 4);
  EXPECT_EQ(made.num_decodes + made.num_prefills, 0);
  EXPECT_EQ(made.prefill_metadata(), nullptr);
  EXPECT_EQ(made.decode_metadata(), nullptr);
}

TEST(MakeMetadata, BadBatchesAreErrors) {
  Batch batch({1, 5}, {9, 4});
  EXPECT_EQ(error_of(batch.common(), options_for(batch)), "seq_lens: request 1: want at least its query_len 5, got 4");
  Batch good({1, 5}, {9, 5});
  CommonAttentionMetadata common = good.common();
  common.block_table_tensor = {};
  EXPECT_EQ(error_of(common, options_for(good)), "block_table: want a table of [num_reqs, blocks], got none");
}

TEST(MakeMetadata, ThePlanIsClippedWithTheLayersTerms) {
  Batch batch({1}, {5000}, 16);
  MetadataOptions options = options_for(batch);
  options.variant.window_left = 100;
  options.variant.window_right = 0;
  const float slopes[1] = {1.0f};
  options.variant.alibi_slopes = slopes;
  const AttentionMetadata made = make_metadata(batch.common(), options).value();
  ASSERT_EQ(made.plan.items.size(), 1u);
  EXPECT_EQ(made.plan.items[0].kv_begin, 4096);
  EXPECT_EQ(made.plan_variant.window_left, 100);
  EXPECT_EQ(made.plan_variant.alibi_slopes, nullptr);
}

TEST(MakeMetadata, EncodersSeeTheirOwnRows) {
  Batch batch({3, 6}, {3, 6});
  CommonAttentionMetadata common = batch.common();
  const Lens longer = {30, 60};
  common.seq_lens_cpu = longer;
  common.max_seq_len = 60;
  common.block_table_tensor = {};
  MetadataOptions options = options_for(batch);
  options.attn_type = AttentionType::kEncoderOnly;
  const AttentionMetadata made = make_metadata(common, options).value();
  EXPECT_EQ(made.seq_lens, (Lens{3, 6}));
  EXPECT_EQ(made.max_seq_len, 6);
  EXPECT_FALSE(made.causal);
  EXPECT_TRUE(made.block_table.empty());
  EXPECT_TRUE(made.slot_mapping.empty());
  EXPECT_EQ(made.plan.items[0].kv_end, 6);
  EXPECT_EQ(made.plan.items[1].kv_end, 3);
}

TEST(MakeMetadata, CrossAttentionSeesTheEncodersKeys) {
  Batch batch({1, 5}, {10, 9});
  CommonAttentionMetadata common = batch.common();
  const Lens encoder = {12, 3};
  common.encoder_seq_lens_cpu = encoder;
  MetadataOptions options = options_for(batch);
  options.attn_type = AttentionType::kEncoderDecoder;
  const AttentionMetadata made = make_metadata(common, options).value();
  EXPECT_EQ(made.seq_lens, encoder);
  EXPECT_EQ(made.max_seq_len, 12);
  EXPECT_FALSE(made.causal);
  EXPECT_EQ(made.plan.items[0].kv_end, 3);  // 5 rows x 3 keys before 1 row x 12
  std::vector<std::int64_t> slots = {3, 99};
  common.slot_mapping = make_tensor(slots.data(), DType::kInt64, {2}).value();
  EXPECT_EQ(error_of(common, options), "slot_mapping: request 1: token 1: want a slot in [-1, 36), got 99");
  common.encoder_seq_lens_cpu = {};
  EXPECT_EQ(error_of(common, options), "encoder_seq_lens: want 2 entries for cross attention, got 0");
}

TEST(MakeMetadata, GraphCaptureMakesAllSequencesOneTokenLong) {
  Batch batch({4, 4}, {40, 30});
  MetadataOptions options = options_for(batch);
  options.lengths = LengthUse::kGraphCapture;
  const AttentionMetadata made = make_metadata(batch.common(), options).value();
  EXPECT_EQ(made.seq_lens, (Lens{1, 1}));
  EXPECT_EQ(made.max_seq_len, 1);
  ASSERT_EQ(made.plan.items.size(), 2u);
  EXPECT_EQ(made.plan.items[0].kv_end, 1);
}

TEST(MakeMetadata, MmRangesArePadded) {
  Batch batch({1, 5, 3}, {9, 5, 12});
  CommonAttentionMetadata common = batch.common();
  const std::vector<MmRange> ranges = {{0, 0}, {2, 4}, {3, 3}, {5, 8}, {0, 2}};
  const Lens starts = {0, 1, 3, 5};
  common.mm_ranges = ranges;
  common.mm_range_start = starts;
  const AttentionMetadata made = make_metadata(common, options_for(batch)).value();
  EXPECT_EQ(made.mm_prefix_max_ranges, 2);
  EXPECT_EQ(made.mm_prefix_ranges, (Lens{0, 0, 0, 0, 2, 4, 0, 0, 5, 8, 0, 2}));
  common.mm_ranges = std::span(ranges).first(1);
  const Lens only_padding = {0, 1, 1, 1};
  common.mm_range_start = only_padding;
  const AttentionMetadata none = make_metadata(common, options_for(batch)).value();
  EXPECT_EQ(none.mm_prefix_max_ranges, 0);
  EXPECT_TRUE(none.mm_prefix_ranges.empty());
}

TEST(MakeMetadata, TheBuildersTreeCountsForRequestsOfItsSize) {
  Batch batch({3, 3, 2}, {9, 3, 12});
  const TokenTree tree = TokenTree::parse("[(0,), (1,)]").value();
  MetadataOptions options = options_for(batch);
  options.tree = &tree;
  EXPECT_TRUE(make_metadata(batch.common(), options).value().tree_sizes.empty());
  options.tree_use = TreeUse::kVerify;
  const AttentionMetadata made = make_metadata(batch.common(), options).value();
  EXPECT_EQ(made.tree_sizes, (Lens{3, 3, 0}));
  EXPECT_EQ(made.tree_masks, (std::vector<std::uint64_t>{0b001, 0b011, 0b101}));
  EXPECT_EQ(made.tree_mask_offsets[0], 0);
  EXPECT_EQ(made.tree_mask_offsets[1], 0);
  EXPECT_TRUE(made.tree_biases.empty());
  Variant variant;
  made.bind_batch_terms(variant);
  EXPECT_EQ(variant.tree.size, made.tree_sizes.data());
  EXPECT_EQ(variant.tree.bias, nullptr);
}

TEST(MakeMetadata, TreesByRequestKeepTheirMasksAndBiases) {
  Batch batch({3, 1, 4}, {9, 3, 12});
  const TokenTree fork = TokenTree::parse("[(0,), (1,)]").value();
  const TokenTree chain = TokenTree::chain(3).value();
  const std::vector<const TokenTree*> trees = {&fork, nullptr, &chain};
  CommonAttentionMetadata common = batch.common();
  common.trees = trees;
  MetadataOptions options = options_for(batch);
  options.tree_use = TreeUse::kVerify;
  options.tree_form = TreeForm::kMaskAndBias;
  const AttentionMetadata made = make_metadata(common, options).value();
  EXPECT_EQ(made.tree_sizes, (Lens{3, 0, 4}));
  EXPECT_EQ(made.tree_mask_offsets[2], 3);
  EXPECT_EQ(made.tree_bias_offsets[2], 9);
  const std::vector<float> fork_bias = fork.bias();
  const std::vector<float> chain_bias = chain.bias();
  ASSERT_EQ(made.tree_biases.size(), 25u);
  EXPECT_TRUE(std::equal(fork_bias.begin(), fork_bias.end(), made.tree_biases.begin()));
  EXPECT_TRUE(std::equal(chain_bias.begin(), chain_bias.end(), made.tree_biases.begin() + 9));
  const std::vector<const TokenTree*> wrong = {nullptr, &fork, nullptr};
  common.trees = wrong;
  EXPECT_EQ(error_of(common, options), "trees: request 1: want a tree of its query_len 1, got one of 3 nodes");
  common.trees = std::span(wrong).first(2);
  EXPECT_EQ(error_of(common, options), "trees: want 3 entries, got 2");
}

TEST(MakeMetadata, DraftingDropsTheRoot) {
  Batch batch({4, 4}, {9, 12});
  batch.seq_lens[1] = 1;  // a request that cannot be drafted any further
  const TokenTree tree = TokenTree::parse("[(0,), (1,), (0, 0), (1, 0), (1, 0, 0)]").value();
  MetadataOptions options = options_for(batch);
  options.tree = &tree;
  options.tree_use = TreeUse::kDraft;
  options.tree_form = TreeForm::kMaskAndBias;
  const AttentionMetadata made = make_metadata(batch.common(), options).value();
  EXPECT_EQ(made.tree_sizes, (Lens{4, 4}));
  EXPECT_EQ(made.tree_masks, (std::vector<std::uint64_t>{0b0001, 0b0010, 0b0101, 0b1010}));
  ASSERT_EQ(made.tree_biases.size(), 16u);
  for (std::size_t row = 0; row < 4; ++row) {
    for (std::size_t col = 0; col < 4; ++col) {
      const bool visible = ((made.tree_masks[row] >> col) & 1u) != 0;
      EXPECT_EQ(made.tree_biases[row * 4 + col], visible ? 0.0f : -std::numeric_limits<float>::infinity());
    }
  }
  batch.seq_lens[1] = 3;
  EXPECT_EQ(error_of(batch.common(), options),
            "seq_lens: request 1: want at least its query_len 4, or 1 for a request that is not drafted, got 3");
  Batch wide({6}, {9});
  options.limits = wide.limits();
  EXPECT_EQ(error_of(wide.common(), options), "max_query_len: want at most the tree's 5 drafts, got 6");
  const std::vector<const TokenTree*> trees = {&tree};
  CommonAttentionMetadata common = wide.common();
  common.trees = trees;
  EXPECT_EQ(error_of(common, options),
            "trees: request 0: want a tree of more than its query_len 6 nodes to draft, got 6");
}

class Parts : public ::testing::Test {
 protected:
  // Two decodes that carry a tree of 3, two prefills with images and flags.
  Parts() : batch_({3, 3, 7, 5}, {20, 15, 7, 12}) {
    common_ = batch_.common();
    common_.mm_ranges = ranges_;
    common_.mm_range_start = range_starts_;
    common_.causal_per_seq = causal_;
    options_ = options_for(batch_);
    options_.order = BatchOrder::kDecodesFirst;
    options_.decode_threshold = 3;
    options_.tree = &tree_;
    options_.tree_use = TreeUse::kVerify;
  }

  Batch batch_;
  CommonAttentionMetadata common_;
  MetadataOptions options_;
  const std::vector<MmRange> ranges_ = {{1, 4}, {2, 6}};
  const Lens range_starts_ = {0, 0, 0, 1, 2};
  const std::vector<std::uint8_t> causal_ = {1, 1, 0, 1};
  const TokenTree tree_ = TokenTree::parse("[(0,), (1,)]").value();
};

TEST_F(Parts, AreSlicesWithStartsOfTheirOwn) {
  const AttentionMetadata whole = make_metadata(common_, options_).value();
  EXPECT_EQ(whole.num_decodes, 2);
  EXPECT_EQ(whole.num_prefill_tokens, 12);
  const AttentionMetadata* decode = whole.decode_metadata();
  ASSERT_NE(decode, nullptr);
  EXPECT_EQ(decode->num_reqs, 2);
  EXPECT_EQ(decode->query_start_loc, (Lens{0, 3, 6}));
  EXPECT_EQ(decode->seq_lens, (Lens{20, 15}));
  EXPECT_EQ(decode->tree_sizes, (Lens{3, 3}));
  EXPECT_EQ(decode->max_seq_len, 20);
  EXPECT_EQ(decode->num_decode_tokens, 6);
  EXPECT_EQ(decode->num_prefills, 0);
  EXPECT_EQ(decode->slot_mapping.size(0), 6);
  EXPECT_EQ(decode->plan.items.size(), 2u);
  const AttentionMetadata* prefill = whole.prefill_metadata();
  ASSERT_NE(prefill, nullptr);
  EXPECT_EQ(prefill->num_reqs, 2);
  EXPECT_EQ(prefill->num_actual_tokens, 12);
  EXPECT_EQ(prefill->query_start_loc, (Lens{0, 7, 12}));
  EXPECT_EQ(prefill->seq_lens, (Lens{7, 12}));
  EXPECT_EQ(prefill->max_query_len, 7);
  EXPECT_EQ(prefill->max_seq_len, 12);
  EXPECT_TRUE(prefill->tree_sizes.empty());
  EXPECT_EQ(prefill->causal_per_seq, (std::vector<std::uint8_t>{0, 1}));
  EXPECT_EQ(prefill->mm_prefix_ranges, (Lens{1, 4, 2, 6}));
  EXPECT_EQ(prefill->block_table.as<std::int32_t>(), batch_.block_table.data() + 2 * batch_.width);
  EXPECT_EQ(prefill->slot_mapping.as<std::int64_t>(), batch_.slots.data() + 6);
  EXPECT_EQ(prefill->block_size, 4);
  ASSERT_EQ(prefill->plan.items.size(), 2u);
  EXPECT_EQ(prefill->plan.items[0].seq, 1);
  EXPECT_EQ(whole.prefill_metadata(), prefill);
  EXPECT_EQ(prefill->decode_metadata(), nullptr);
}

TEST_F(Parts, PrefillsMayStandInFront) {
  Batch batch({7, 5, 1, 1, 1}, {7, 12, 20, 15, 9});
  MetadataOptions options = options_for(batch);
  options.order = BatchOrder::kPrefillsFirst;
  const AttentionMetadata whole = make_metadata(batch.common(), options).value();
  EXPECT_TRUE(whole.prefills_first);
  EXPECT_EQ(whole.num_prefills, 2);
  EXPECT_EQ(whole.num_prefill_tokens, 12);
  EXPECT_EQ(whole.num_decodes, 3);
  EXPECT_EQ(whole.prefill_metadata()->query_start_loc, (Lens{0, 7, 12}));
  EXPECT_EQ(whole.decode_metadata()->query_start_loc, (Lens{0, 1, 2, 3}));
  EXPECT_EQ(whole.decode_metadata()->seq_lens, (Lens{20, 15, 9}));
  EXPECT_EQ(whole.decode_metadata()->slot_mapping.as<std::int64_t>(), batch.slots.data() + 12);
  EXPECT_EQ(whole.decode_metadata()->block_table.as<std::int32_t>(), batch.block_table.data() + 2 * batch.width);
  Batch wrong({1, 5}, {9, 12});
  EXPECT_EQ(error_of(wrong.common(), options),
            "batch order: request 1: want prefills in front, got one of 5 tokens behind the decode request 0");
  // A prompt of one token, and a chunk that the scheduler says is still prefilling.
  Batch short_prompt({1, 1, 1}, {1, 12, 8});
  CommonAttentionMetadata common = short_prompt.common();
  options.limits = short_prompt.limits();
  EXPECT_EQ(make_metadata(common, options).value().num_prefills, 1);
  const std::vector<std::uint8_t> prefilling = {1, 1, 0};
  common.is_prefilling = prefilling;
  EXPECT_EQ(make_metadata(common, options).value().num_prefills, 2);
}

TEST_F(Parts, DecodesBehindPrefillsAreErrors) {
  Batch wrong({5, 1}, {9, 12});
  options_.limits = wrong.limits();
  options_.tree = nullptr;
  EXPECT_EQ(
      error_of(wrong.common(), options_),
      "batch order: request 1: want decodes (at most 3 new tokens) in front, got one of 1 behind request 0 with 5");
}

TEST_F(Parts, CopiesAndMovesMakeTheirOwn) {
  AttentionMetadata whole = make_metadata(common_, options_).value();
  const AttentionMetadata* first = whole.decode_metadata();
  AttentionMetadata copy = whole;
  EXPECT_NE(copy.decode_metadata(), first);
  EXPECT_EQ(copy.decode_metadata()->seq_lens, first->seq_lens);
  AttentionMetadata moved = std::move(copy);
  EXPECT_EQ(moved.prefill_metadata()->num_reqs, 2);
  moved = whole;
  EXPECT_EQ(moved.prefill_metadata()->num_reqs, 2);
  EXPECT_EQ(whole.decode_metadata(), first);
}

TEST_F(Parts, FirstUseIsSafeFromManyThreads) {
  for (int i = 0; i < 50; ++i) {
    const AttentionMetadata whole = make_metadata(common_, options_).value();
    std::vector<const AttentionMetadata*> seen(4);
    std::vector<std::thread> threads;
    for (std::size_t t = 0; t < seen.size(); ++t) {
      threads.emplace_back([&, t] { seen[t] = whole.prefill_metadata(); });
    }
    for (std::thread& thread : threads) thread.join();
    for (const AttentionMetadata* part : seen) EXPECT_EQ(part, whole.prefill_metadata());
  }
}

TEST_F(Parts, DeviceLengthsAreSlicedWhereThatIsPossible) {
  std::vector<std::int32_t> starts = batch_.query_start_loc;
  std::vector<std::int32_t> lens = batch_.seq_lens;
  const Device gpu{.type = DeviceType::kCuda, .index = 0};
  common_.query_start_loc = make_tensor(starts.data(), DType::kInt32, {5}, gpu).value();
  common_.seq_lens = make_tensor(lens.data(), DType::kInt32, {4}, gpu).value();
  const AttentionMetadata whole = make_metadata(common_, options_).value();
  EXPECT_EQ(whole.query_start_loc_device.data, starts.data());
  EXPECT_EQ(whole.decode_metadata()->query_start_loc_device.size(0), 3);
  EXPECT_TRUE(whole.prefill_metadata()->query_start_loc_device.empty());
  EXPECT_EQ(whole.prefill_metadata()->seq_lens_device.as<std::int32_t>(), lens.data() + 2);
}

TEST(MetadataOptions, FollowTheLayer) {
  BuilderConfig config;
  config.num_heads = 32;
  config.num_kv_heads = 8;
  config.num_blocks = 100;
  config.block_size = 32;
  config.sliding_window = 128;
  const MetadataOptions decoder = metadata_options(config).value();
  EXPECT_EQ(decoder.plan.rows_per_token, 4);
  EXPECT_EQ(decoder.variant.window_left, 127);
  EXPECT_EQ(decoder.variant.window_right, 0);
  EXPECT_EQ(decoder.limits.num_blocks, 100);
  EXPECT_EQ(decoder.tree_use, TreeUse::kNone);
  EXPECT_EQ(metadata_options(config, 2).value().plan.rows_per_token, 8);
  config.attn_type = AttentionType::kEncoder;
  EXPECT_EQ(metadata_options(config).value().variant.window_right, 127);
  config.attn_type = AttentionType::kEncoderDecoder;
  EXPECT_EQ(metadata_options(config).value().variant.window_left, -1);
  config.tree = TokenTree::chain(2).value();
  EXPECT_EQ(metadata_options(config).value().tree, &*config.tree);
  config.attn_type = AttentionType::kDecoder;
  config.sliding_window = 0;
  EXPECT_EQ(metadata_options(config).status().message(), "sliding_window: want at least 1, got 0");
  config.sliding_window.reset();
  config.chunk = -1;
  EXPECT_EQ(metadata_options(config).status().message(), "chunk and chunk_lookback: want at least 0, got -1 and 0");
  config.num_kv_heads = 5;
  EXPECT_EQ(metadata_options(config).status().message(), "num_heads: want a multiple of num_kv_heads 5, got 32");
  config.num_heads = 0;
  EXPECT_EQ(metadata_options(config).status().message(), "num_heads: want at least 1, got 0");
}

}  // namespace
}  // namespace quire
