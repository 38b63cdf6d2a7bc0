// What the five builders make of a batch: thresholds, orders, drafting, graph capture and what they refuse.
#include <gtest/gtest.h>

#include <algorithm>

#include "unit/backends/layer_run.h"

namespace quire::test {
namespace {

BuilderConfig default_builder() {
  BuilderConfig config;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_size = 16;
  config.num_blocks = 64;
  config.runtime.backplane = Backplane::kReference;
  return config;
}

std::unique_ptr<AttentionMetadataBuilder> make(std::string_view backend, const BuilderConfig& config) {
  return (*find_backend(backend))->make_builder(config).value();
}

TokenTree tree_of(std::vector<TreePath> choices) { return TokenTree::from_choices(choices).value(); }

// The batch of a LayerRun whose layer is a plain TRITON_ATTN one, handed to other builders.
LayerRun batch_of(std::vector<Sequence> sequences) { return LayerRun({.sequences = std::move(sequences)}); }

void expect_message(const Status& status, std::string_view text) {
  EXPECT_FALSE(status.ok()) << text;
  EXPECT_NE(status.message().find(text), std::string::npos) << "want: " << text << "\ngot:  " << status.to_string();
}

TEST(Builders, Thresholds) {
  BuilderConfig config = default_builder();
  EXPECT_EQ(make("TREE_ATTN", config)->reorder_batch_threshold(), 2);
  EXPECT_EQ(make("XFORMERS", config)->reorder_batch_threshold(), 1);
  EXPECT_EQ(make("TRITON_ATTN", config)->reorder_batch_threshold(), 0);
  EXPECT_EQ(make("TRITON_ATTN_DIFFKV", config)->reorder_batch_threshold(), 1);
  EXPECT_EQ(make("DIFFERENTIAL_FLASH_ATTN", config)->reorder_batch_threshold(), 1);
  config.num_speculative_tokens = 3;
  EXPECT_EQ(make("TRITON_ATTN_DIFFKV", config)->reorder_batch_threshold(), 4);
  EXPECT_EQ(make("TREE_ATTN", config)->reorder_batch_threshold(), 4);
  config.tree = tree_of({{0}, {1}, {0, 0}, {0, 1}, {1, 0}, {1, 1}});
  EXPECT_EQ(make("TREE_ATTN", config)->reorder_batch_threshold(), 7);
}

TEST(Builders, ReorderPutsTheirRegionsInFront) {
  const std::vector<std::int32_t> scheduled = {20, 1, 30, 1}, computed = {0, 9, 40, 9};
  const ReorderInput input{.num_scheduled_tokens = scheduled, .num_computed_tokens = computed};
  const auto order = [&](std::string_view backend) {
    std::vector<std::int32_t> tokens = scheduled;
    for (const auto& [a, b] : make(backend, default_builder())->reorder_batch(input)) {
      std::swap(tokens[static_cast<std::size_t>(a)], tokens[static_cast<std::size_t>(b)]);
    }
    return tokens;
  };
  EXPECT_EQ(order("TRITON_ATTN"), scheduled);
  EXPECT_EQ(order("XFORMERS"), (std::vector<std::int32_t>{1, 1, 30, 20}));
  EXPECT_EQ(order("TREE_ATTN"), (std::vector<std::int32_t>{1, 1, 30, 20}));
  EXPECT_EQ(order("TRITON_ATTN_DIFFKV"), (std::vector<std::int32_t>{1, 1, 30, 20}));
  const std::vector<std::int32_t> prefills_first = order("DIFFERENTIAL_FLASH_ATTN");
  EXPECT_EQ(std::vector<std::int32_t>(prefills_first.end() - 2, prefills_first.end()),
            (std::vector<std::int32_t>{1, 1}));
}

TEST(Builders, SplitsOfTheirOrders) {
  LayerRun decodes_first = batch_of({{36, 1}, {17, 1}, {13, 5}, {0, 33}});
  const auto xformers = make("XFORMERS", default_builder())->build(0, decodes_first.common);
  ASSERT_TRUE(xformers.ok()) << xformers.status().to_string();
  EXPECT_EQ(xformers->num_decodes, 2);
  EXPECT_EQ(xformers->num_prefill_tokens, 38);
  EXPECT_EQ(xformers->prefill_metadata()->query_start_loc, (std::vector<std::int32_t>{0, 5, 38}));
  EXPECT_EQ(xformers->decode_metadata()->seq_lens, (std::vector<std::int32_t>{37, 18}));
  const auto triton = make("TRITON_ATTN", default_builder())->build(0, decodes_first.common);
  EXPECT_EQ(triton->num_decodes + triton->num_prefills, 0);
  expect_message(make("DIFFERENTIAL_FLASH_ATTN", default_builder())->build(0, decodes_first.common).status(),
                 "want prefills in front");

  LayerRun prefills_first = batch_of({{0, 33}, {13, 5}, {36, 1}});
  const auto differential = make("DIFFERENTIAL_FLASH_ATTN", default_builder())->build(0, prefills_first.common);
  ASSERT_TRUE(differential.ok()) << differential.status().to_string();
  EXPECT_TRUE(differential->prefills_first);
  EXPECT_EQ(differential->num_prefills, 2);
  EXPECT_EQ(differential->num_decode_tokens, 1);
  EXPECT_FALSE(make("XFORMERS", default_builder())->build(0, prefills_first.common).ok());
}

TEST(Builders, TreesBelongToRequestsOfTheirSize) {
  BuilderConfig config = default_builder();
  config.tree = tree_of({{0}, {1}, {0, 0}});
  LayerRun batch = batch_of({{20, 4}, {8, 3}, {0, 9}});
  const auto metadata = make("TREE_ATTN", config)->build(5, batch.common);
  ASSERT_TRUE(metadata.ok()) << metadata.status().to_string();
  EXPECT_EQ(metadata->tree_sizes, (std::vector<std::int32_t>{4, 0, 0}));
  EXPECT_EQ(metadata->tree_masks, (std::vector<std::uint64_t>{1, 3, 5, 11}));
  EXPECT_EQ(metadata->num_decodes, 2);
}

TEST(Builders, DraftLevels) {
  BuilderConfig config = default_builder();
  config.tree = tree_of({{0}, {1}, {0, 0}});
  LayerRun batch = batch_of({{20, 2}, {8, 2}});
  const auto root = make("TREE_ATTN", config)->build_for_drafting(batch.common, 0);
  ASSERT_TRUE(root.ok());
  EXPECT_TRUE(root->tree_sizes.empty());
  EXPECT_EQ(root->num_prefills, 2);
  const auto level = make("TREE_ATTN", config)->build_for_drafting(batch.common, 1);
  ASSERT_TRUE(level.ok()) << level.status().to_string();
  EXPECT_EQ(level->tree_sizes, (std::vector<std::int32_t>{2, 2}));
  EXPECT_EQ(level->tree_masks, (std::vector<std::uint64_t>{1, 2}));
  EXPECT_EQ(level->num_decodes, 2);
  for (const std::string_view name : {"TREE_ATTN", "TRITON_ATTN"}) {
    expect_message(make(name, default_builder())->build_for_drafting(batch.common, -1).status(),
                   "draft_index: want >= 0");
  }
}

TEST(Builders, GraphCaptureShortensTheSequencesOfTriton) {
  LayerRun batch = batch_of({{36, 1}, {20, 3}});
  const auto triton = make("TRITON_ATTN", default_builder())->build_for_cudagraph_capture(batch.common);
  ASSERT_TRUE(triton.ok());
  EXPECT_EQ(triton->seq_lens, (std::vector<std::int32_t>{1, 1}));
  const auto xformers = make("XFORMERS", default_builder())->build_for_cudagraph_capture(batch.common);
  ASSERT_TRUE(xformers.ok());
  EXPECT_EQ(xformers->seq_lens, (std::vector<std::int32_t>{37, 23}));
}

TEST(Builders, CommonPrefixes) {
  LayerRun batch = batch_of({{36, 1}});
  for (const std::string_view name : {"TRITON_ATTN", "TRITON_ATTN_DIFFKV"}) {
    expect_message(make(name, default_builder())->build(16, batch.common).status(), "common_prefix_len: want 0");
  }
  for (const std::string_view name : {"TREE_ATTN", "XFORMERS", "DIFFERENTIAL_FLASH_ATTN"}) {
    EXPECT_TRUE(make(name, default_builder())->build(16, batch.common).ok());
    expect_message(make(name, default_builder())->build(-1, batch.common).status(), "common_prefix_len: want >= 0");
  }
}

TEST(Builders, WhatABackendDoesNotTakeIsRefused) {
  LayerSetup ranges{.sequences = {{36, 1}}, .mm_ranges = {{{2, 9}}}};
  LayerRun with_ranges(ranges);
  LayerSetup open{.sequences = {{36, 1}}, .causal = false};
  LayerRun not_causal(open);
  const TokenTree tree = tree_of({{0}});
  for (const std::string_view name : {"TREE_ATTN", "XFORMERS", "DIFFERENTIAL_FLASH_ATTN"}) {
    const auto builder = make(name, default_builder());
    expect_message(builder->build(0, with_ranges.common).status(), "mm_ranges: not supported by " + std::string(name));
    expect_message(builder->build(0, not_causal.common).status(), "non-causal attention: not supported by");
  }
  LayerRun with_tree = batch_of({{36, 2}});
  const std::vector<const TokenTree*> trees = {&tree};
  with_tree.common.trees = trees;
  for (const std::string_view name : {"XFORMERS", "TRITON_ATTN", "TRITON_ATTN_DIFFKV", "DIFFERENTIAL_FLASH_ATTN"}) {
    expect_message(make(name, default_builder())->build(0, with_tree.common).status(), "trees: not supported by");
    BuilderConfig config = default_builder();
    config.tree = tree;
    expect_message((*find_backend(name))->make_builder(config).status(), "tree: not supported by");
  }
  EXPECT_TRUE(make("TREE_ATTN", default_builder())->build(0, with_tree.common).ok());
}

TEST(Builders, BadConfigurations) {
  const auto status = [](auto change) {
    BuilderConfig config = default_builder();
    change(config);
    return (*find_backend("TREE_ATTN"))->make_builder(config).status();
  };
  expect_message(status([](BuilderConfig& c) { c.num_heads = 3; }), "num_heads: want a multiple");
  expect_message(status([](BuilderConfig& c) { c.sliding_window = 0; }), "sliding_window: want >= 1");
  expect_message(status([](BuilderConfig& c) { c.attn_type = AttentionType::kEncoder; }), "attn_type: encoder");
  expect_message(status([](BuilderConfig& c) { c.num_speculative_tokens = -1; }), "num_speculative_tokens");
}

}  // namespace
}  // namespace quire::test
