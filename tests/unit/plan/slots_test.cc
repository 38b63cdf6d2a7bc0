// Slots of new tokens: plain, windowed prompts, and the levels of tree drafting.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "quire/tree_draft.h"
#include "unit/plan/batch_fixture.h"

namespace quire {
namespace {

using Slots = std::vector<std::int64_t>;

TEST(SlotMapping, FollowsTheBlockTable) {
  std::mt19937 random(41);
  for (int i = 0; i < 100; ++i) {
    std::vector<std::int32_t> query_lens;
    std::vector<std::int32_t> seq_lens;
    for (int req = 0; req < 4; ++req) {
      query_lens.push_back(static_cast<std::int32_t>(random() % 9));
      seq_lens.push_back(query_lens.back() + static_cast<std::int32_t>(random() % 30));
    }
    Batch batch(query_lens, seq_lens, static_cast<std::int32_t>(random() % 5) + 1);
    std::reverse(batch.block_table.begin(), batch.block_table.end());
    Slots got(batch.slots.size() + 3, 77);
    ASSERT_TRUE(compute_slot_mapping(batch.common(), batch.block_size, batch.num_blocks, got).ok());
    std::size_t token = 0;
    for (std::int32_t req = 0; req < 4; ++req) {
      const std::int32_t end = seq_lens[static_cast<std::size_t>(req)];
      for (std::int32_t p = end - query_lens[static_cast<std::size_t>(req)]; p < end; ++p) {
        ASSERT_EQ(got[token++], batch.slot_of(req, p));
      }
    }
    for (; token < got.size(); ++token) ASSERT_EQ(got[token], -1);
  }
}

TEST(SlotMapping, Errors) {
  Batch batch({2, 3}, {6, 9});
  Slots slots(5);
  const auto message = [&](std::int32_t block_size, std::int64_t num_blocks) {
    return compute_slot_mapping(batch.common(), block_size, num_blocks, slots).message();
  };
  EXPECT_EQ(message(0, 9), "block_size: want at least 1, got 0");
  EXPECT_EQ(message(4, 3), "block_table: request 1: block 1: want an id in [0, 3), got 6");
  EXPECT_EQ(message(1, 9), "block_table: request 0: want a block for position 4, got a table of 4 blocks of 1");
  slots.resize(4);
  EXPECT_EQ(message(4, 9), "slot_mapping: want at least 5 slots, got 4");
  slots.resize(5);
  batch.seq_lens[0] = 1;
  EXPECT_EQ(message(4, 9), "seq_lens: request 0: want at least its query_len 2, got 1");
}

TEST(WindowedSlots, APromptStoresItsWindowOnly) {
  const std::vector<std::int32_t> table = {5, 3, 8};
  Slots slots;
  WindowedSlotsInput input{
      .block_table = table, .block_size = 4, .context_len = 0, .query_len = 10, .prompt_window = 8};
  ASSERT_TRUE(append_windowed_slots(input, slots).ok());
  EXPECT_EQ(slots, (Slots{-1, -1, 22, 23, 12, 13, 14, 15, 32, 33}));
  slots.clear();
  input.prompt_window = 0;
  ASSERT_TRUE(append_windowed_slots(input, slots).ok());
  EXPECT_EQ(slots[0], 20);
  slots.clear();
  input = {.block_table = table, .block_size = 4, .context_len = 7, .query_len = 2, .prompt_window = 1};
  ASSERT_TRUE(append_windowed_slots(input, slots).ok());
  EXPECT_EQ(slots, (Slots{15, 32}));  // the context already covers the tokens that would be left out
}

TEST(WindowedSlots, Errors) {
  const std::vector<std::int32_t> table = {5, 3};
  Slots slots;
  WindowedSlotsInput input{.block_table = table, .block_size = 4, .context_len = 0, .query_len = 9};
  EXPECT_EQ(append_windowed_slots(input, slots).message(), "block_table: want 3 blocks for 9 tokens, got 2");
  input.query_len = -1;
  EXPECT_EQ(append_windowed_slots(input, slots).message(), "context_len and query_len: want at least 0, got 0 and -1");
  input = {.block_table = table, .block_size = 0, .query_len = 1};
  EXPECT_EQ(append_windowed_slots(input, slots).message(), "block_size: want at least 1, got 0");
  EXPECT_TRUE(slots.empty());
}

class DraftLevels : public ::testing::Test {
 protected:
  DraftLevelInput input(std::int32_t level) {
    return {.tree = &tree_,
            .level = level,
            .root_positions = roots_,
            .block_table = make_tensor(table_.data(), DType::kInt32, {2, 8}).value(),
            .block_size = 4,
            .num_blocks = 16,
            .max_model_len = 32};
  }

  TokenTree tree_ = TokenTree::parse("[(0,),(1,),(2,),(0,0),(0,1),(1,0),(0,0,0)]").value();
  std::vector<std::int64_t> roots_ = {5, 16};
  std::vector<std::int32_t> table_ = {0, 1, 2, 3, 4, 5, 6, 7, 15, 14, 13, 12, 11, 10, 9, 8};
};

TEST_F(DraftLevels, TheFirstLevelRunsTheRootsChildren) {
  const DraftLevel level = make_draft_level(input(0)).value();
  EXPECT_EQ(level.query_len, 3);
  EXPECT_EQ(level.num_new_drafts, 3);
  EXPECT_EQ(level.query_start_loc, (std::vector<std::int32_t>{0, 3, 6}));
  EXPECT_EQ(level.seq_lens, (std::vector<std::int32_t>{9, 20}));
  EXPECT_EQ(level.max_seq_len, 20);
  EXPECT_EQ(level.positions, (Slots{6, 6, 6, 17, 17, 17}));
  EXPECT_EQ(level.slot_mapping, (Slots{6, 7, 8, 45, 46, 47}));
}

TEST_F(DraftLevels, LaterLevelsRunAllDraftsAgainInTheirOwnSlots) {
  const DraftLevel level = make_draft_level(input(1)).value();
  EXPECT_EQ(level.query_len, 6);
  EXPECT_EQ(level.num_new_drafts, 3);
  EXPECT_EQ(level.seq_lens, (std::vector<std::int32_t>{12, 23}));
  EXPECT_EQ(level.positions, (Slots{6, 6, 6, 7, 7, 7, 17, 17, 17, 18, 18, 18}));
  // Row i is the key at position context_len + i: the slots of earlier drafts do not move between levels.
  EXPECT_EQ(level.slot_mapping, (Slots{6, 7, 8, 9, 10, 11, 45, 46, 47, 40, 41, 42}));
}

TEST_F(DraftLevels, RequestsAtTheModelsEndAreNotDrafted) {
  roots_ = {5, 25};
  const DraftLevel level = make_draft_level(input(0)).value();
  EXPECT_EQ(level.seq_lens, (std::vector<std::int32_t>{9, 1}));
  EXPECT_EQ(level.positions, (Slots{6, 6, 6, 0, 0, 0}));
  EXPECT_EQ(level.slot_mapping, (Slots{6, 7, 8, -1, -1, -1}));
  roots_ = {5, 24};
  EXPECT_EQ(make_draft_level(input(0)).value().seq_lens[1], 28);
}

TEST_F(DraftLevels, Errors) {
  EXPECT_EQ(make_draft_level(input(2)).status().message(), "level: want a level that has children, in [0, 2), got 2");
  EXPECT_EQ(make_draft_level(input(-1)).status().message(), "level: want a level that has children, in [0, 2), got -1");
  DraftLevelInput bad = input(0);
  bad.tree = nullptr;
  EXPECT_EQ(make_draft_level(bad).status().message(), "tree: want a tree, got null");
  const TokenTree deep_first = TokenTree::from_parents(std::vector<std::int32_t>{0, 1, 0}).value();
  bad.tree = &deep_first;
  EXPECT_EQ(make_draft_level(bad).status().message(),
            "tree: want nodes sorted by depth, got depth 1 at node 3 behind depth 2");
  bad = input(0);
  bad.num_blocks = 11;
  EXPECT_EQ(make_draft_level(bad).status().message(), "block_table: request 1: block 4: want an id in [0, 11), got 11");
  bad = input(0);
  bad.max_model_len = 1000;
  roots_[0] = 40;
  EXPECT_EQ(make_draft_level(bad).status().message(),
            "block_table: request 0: want a block for position 41, got a table of 8 blocks of 4");
  roots_[0] = -1;
  EXPECT_EQ(make_draft_level(input(0)).status().message(), "root_positions: request 0: want 0 to 2147479551, got -1");
}

}  // namespace
}  // namespace quire
