// Work items cover every row and every visible key once, whatever the terms and the batch.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>
#include <tuple>

#include "quire/plan.h"
#include "quire/tree.h"
#include "variant/logit.h"
#include "variant/number.h"

namespace quire {
namespace {

struct PlanCase {
  PlanConfig config;
  std::vector<std::int32_t> starts{0};
  std::vector<std::int32_t> seq_lens;
  Variant variant;
  std::vector<std::uint8_t> causal_per_seq;
  std::vector<std::int32_t> mm_ranges;
  std::vector<std::int32_t> tree_sizes;
  std::vector<std::int64_t> tree_offsets;
  std::vector<std::uint64_t> tree_masks;

  void add(std::int32_t query_len, std::int32_t seq_len) {
    starts.push_back(starts.back() + query_len);
    seq_lens.push_back(seq_len);
  }
  std::int32_t query_len(std::size_t seq) const { return starts[seq + 1] - starts[seq]; }
  AttentionPlan plan() const { return make_attention_plan(config, starts, seq_lens, variant); }
};

bool is_kept(const PlanCase& given, std::size_t seq, std::int32_t row, std::int32_t kv_pos) {
  const std::int32_t context_len = given.seq_lens[seq] - given.query_len(seq);
  const At<Scalar<double>> at{kv_pos, context_len + row, row, context_len, 0};
  return fold_keep<Scalar<double>>(terms_of(given.variant, static_cast<std::int32_t>(seq)), true, at);
}

// Items by (seq, row): every kept key in exactly one, no key in two, at least one item a row.
void expect_exact_cover(const PlanCase& given, const AttentionPlan& plan) {
  for (std::size_t seq = 0; seq < given.seq_lens.size(); ++seq) {
    for (std::int32_t row = 0; row < given.query_len(seq); ++row) {
      std::vector<int> times(static_cast<std::size_t>(std::max(given.seq_lens[seq], 0)), 0);
      int num_items = 0;
      int num_direct = 0;
      for (const WorkItem& item : plan.items) {
        if (item.seq != static_cast<std::int32_t>(seq) || row < item.token_begin ||
            row >= item.token_begin + item.token_count) {
          continue;
        }
        ++num_items;
        num_direct += item.partial < 0 ? 1 : 0;
        ASSERT_LE(item.kv_end, std::max(given.seq_lens[seq], 0));
        for (std::int32_t key = item.kv_begin; key < item.kv_end; ++key) ++times[static_cast<std::size_t>(key)];
      }
      ASSERT_GE(num_items, 1) << "seq " << seq << " row " << row;
      ASSERT_EQ(num_direct, num_items == 1 ? 1 : 0) << "seq " << seq << " row " << row;
      for (std::int32_t key = 0; key < given.seq_lens[seq]; ++key) {
        const int count = times[static_cast<std::size_t>(key)];
        ASSERT_LE(count, 1) << "seq " << seq << " row " << row << " key " << key;
        ASSERT_FALSE(count == 0 && is_kept(given, seq, row, key)) << "seq " << seq << " row " << row << " key " << key;
      }
    }
  }
}

void expect_sound_numbers(const PlanCase& given, const AttentionPlan& plan) {
  std::vector<const WorkItem*> by_partial(static_cast<std::size_t>(plan.num_partials), nullptr);
  std::int32_t widest = 0;
  for (const WorkItem& item : plan.items) {
    ASSERT_EQ(item.kv_begin % kSplitTokens, 0);
    ASSERT_GE(item.token_count, 1);
    ASSERT_TRUE(item.token_count == 1 || item.token_count * given.config.rows_per_token <= given.config.tile_rows);
    if (item.partial < 0) continue;
    ASSERT_LT(item.partial, plan.num_partials);
    ASSERT_LE(item.kv_end, item.kv_begin + kSplitTokens);
    auto& slot = by_partial[static_cast<std::size_t>(item.partial)];
    ASSERT_EQ(slot, nullptr);
    slot = &item;
    widest = std::max(widest, item.token_count);
  }
  ASSERT_EQ(plan.max_partial_tokens, widest);
  std::int32_t next = 0;
  for (const MergeItem& merge : plan.merges) {
    ASSERT_EQ(merge.first_partial, next);
    ASSERT_GE(merge.num_partials, 2);
    std::int32_t kv_end = -1;
    for (; next < merge.first_partial + merge.num_partials; ++next) {
      const WorkItem* item = by_partial[static_cast<std::size_t>(next)];
      ASSERT_NE(item, nullptr);
      ASSERT_EQ(item->seq, merge.seq);
      ASSERT_EQ(item->token_begin, merge.token_begin);
      ASSERT_EQ(item->token_count, merge.token_count);
      ASSERT_GE(item->kv_begin, kv_end);
      kv_end = item->kv_end;
    }
  }
  ASSERT_EQ(next, plan.num_partials);
}

class PlanGenerator {
 public:
  explicit PlanGenerator(unsigned seed) : random_(seed) {}

  std::int32_t pick(std::int32_t low, std::int32_t high) {
    return std::uniform_int_distribution<std::int32_t>(low, high)(random_);
  }
  bool chance(int percent) { return pick(0, 99) < percent; }

  PlanCase make() {
    PlanCase out;
    out.config = {.rows_per_token = pick(1, 9), .tile_rows = pick(1, 160), .split_rows = pick(0, 80)};
    const std::int32_t num_seqs = pick(1, 5);
    for (std::int32_t seq = 0; seq < num_seqs; ++seq) add_sequence(out);
    set_terms(out);
    return out;
  }

 private:
  void add_sequence(PlanCase& out) {
    const std::int32_t query_len = chance(40) ? 1 : pick(0, 60);
    const std::int32_t context_len = chance(50) ? pick(0, 40) : pick(0, 4 * kSplitTokens);
    if (chance(8)) return out.add(query_len, 1);  // a graph-capture dummy
    if (chance(5)) return out.add(0, 0);
    out.add(query_len, context_len + query_len);
  }

  void set_terms(PlanCase& out) {
    out.variant.causal = !chance(20);
    if (chance(40)) out.variant.window_left = chance(50) ? pick(0, 30) : pick(0, 3000);
    if (chance(25)) out.variant.window_right = pick(0, 1500);
    if (chance(20)) {
      out.variant.chunk = pick(1, 2000);
      out.variant.chunk_lookback = pick(0, 2);
    }
    const std::size_t num_seqs = out.seq_lens.size();
    if (chance(20)) {
      for (std::size_t i = 0; i < num_seqs; ++i) out.causal_per_seq.push_back(chance(50) ? 1 : 0);
      out.variant.causal_per_seq = out.causal_per_seq.data();
    }
    if (chance(30)) {
      out.variant.mm_prefix_max_ranges = 2;
      for (std::size_t i = 0; i < num_seqs * 2; ++i) {
        const std::int32_t start = pick(0, 4200);
        out.mm_ranges.push_back(start);
        out.mm_ranges.push_back(start + pick(-1, 2500));
      }
      out.variant.mm_prefix_ranges = out.mm_ranges.data();
    }
    if (chance(30)) set_trees(out);
  }

  void set_trees(PlanCase& out) {
    for (std::size_t seq = 0; seq < out.seq_lens.size(); ++seq) {
      const std::int32_t size = chance(60) ? out.query_len(seq) : 0;
      out.tree_sizes.push_back(size);
      out.tree_offsets.push_back(static_cast<std::int64_t>(out.tree_masks.size()));
      if (size == 0) continue;
      std::vector<std::int32_t> parents;
      for (std::int32_t i = 0; i + 1 < size; ++i) parents.push_back(pick(0, i));
      const TokenTree tree = TokenTree::from_parents(parents).value();
      out.tree_masks.insert(out.tree_masks.end(), tree.mask().begin(), tree.mask().end());
    }
    out.variant.tree = {
        .size = out.tree_sizes.data(), .mask_offset = out.tree_offsets.data(), .mask = out.tree_masks.data()};
  }

  std::mt19937 random_;
};

TEST(AttentionPlan, CoversEveryRowAndKeptKeyOnce) {
  PlanGenerator generator(11);
  for (int i = 0; i < 400; ++i) {
    SCOPED_TRACE("case " + std::to_string(i));
    const PlanCase given = generator.make();
    const AttentionPlan plan = given.plan();
    expect_exact_cover(given, plan);
    expect_sound_numbers(given, plan);
    if (HasFatalFailure()) return;
  }
}

using ItemKey = std::tuple<std::int32_t, std::int32_t, std::int32_t, std::int32_t, bool>;

std::vector<ItemKey> items_of(const AttentionPlan& plan, std::int32_t seq) {
  std::vector<ItemKey> out;
  for (const WorkItem& item : plan.items) {
    if (item.seq == seq) {
      out.emplace_back(item.token_begin, item.token_count, item.kv_begin, item.kv_end, item.partial >= 0);
    }
  }
  std::sort(out.begin(), out.end());
  return out;
}

TEST(AttentionPlan, ASequenceGetsTheSameItemsAloneAndInABatch) {
  PlanGenerator generator(12);
  for (int i = 0; i < 200; ++i) {
    PlanCase given = generator.make();
    given.variant = {.window_left = given.variant.window_left, .chunk = given.variant.chunk};
    const AttentionPlan together = given.plan();
    for (std::size_t seq = 0; seq < given.seq_lens.size(); ++seq) {
      PlanCase alone;
      alone.config = given.config;
      alone.variant = given.variant;
      alone.add(given.query_len(seq), given.seq_lens[seq]);
      EXPECT_EQ(items_of(alone.plan(), 0), items_of(together, static_cast<std::int32_t>(seq)));
    }
  }
}

TEST(AttentionPlan, SplitsLongDecodesAndMergesThem) {
  PlanCase given;
  given.config = {.rows_per_token = 4};
  given.add(1, 2500);
  const AttentionPlan plan = given.plan();
  ASSERT_EQ(plan.items.size(), 3u);
  EXPECT_EQ(plan.num_partials, 3);
  EXPECT_EQ(plan.max_partial_tokens, 1);
  ASSERT_EQ(plan.merges.size(), 1u);
  EXPECT_EQ(plan.merges[0].num_partials, 3);
  EXPECT_EQ(plan.items[0].kv_begin, 0);
  EXPECT_EQ(plan.items[2].kv_begin, 2048);
  EXPECT_EQ(plan.items[2].kv_end, 2500);
}

TEST(AttentionPlan, ManyRowsAreCutIntoTilesAndNotOverKeys) {
  PlanCase given;
  given.config = {.rows_per_token = 4, .tile_rows = 128, .split_rows = 64};
  given.add(100, 3100);
  const AttentionPlan plan = given.plan();
  ASSERT_EQ(plan.items.size(), 4u);
  EXPECT_EQ(plan.num_partials, 0);
  EXPECT_EQ(plan.items[0].token_begin, 64);  // 32 tokens with the most keys
  EXPECT_EQ(plan.items[0].kv_end, 3096);
  EXPECT_EQ(plan.items[3].token_count, 4);
}

TEST(AttentionPlan, ATokenWithMoreRowsThanSplitRowsIsStillSplit) {
  PlanCase given;
  given.config = {.rows_per_token = 96, .tile_rows = 64, .split_rows = 64};
  given.add(1, 3000);
  EXPECT_EQ(given.plan().num_partials, 3);
}

TEST(AttentionPlan, SplitsThatNobodySeesAreLeftOut) {
  PlanCase given;
  given.add(1, 5000);
  given.variant.window_left = 1000;
  const AttentionPlan windowed = given.plan();
  ASSERT_EQ(windowed.items.size(), 2u);
  EXPECT_EQ(
      windowed.items[0].kv_end - windowed.items[0].kv_begin + windowed.items[1].kv_end - windowed.items[1].kv_begin,
      5000 - 3072);
  given.variant.window_left = 100;
  const AttentionPlan direct = given.plan();
  ASSERT_EQ(direct.items.size(), 1u);
  EXPECT_EQ(direct.items[0].partial, -1);
  EXPECT_EQ(direct.items[0].kv_begin, 4096);
  EXPECT_EQ(direct.num_partials, 0);
  EXPECT_TRUE(direct.merges.empty());
}

TEST(AttentionPlan, AnImageWidensAWindowsSplits) {
  PlanCase given;  // two rows: the first inside an image that begins at 0, the second behind it
  given.add(2, 4202);
  given.mm_ranges = {0, 4200};
  given.variant.window_left = 3;
  given.variant.mm_prefix_ranges = given.mm_ranges.data();
  given.variant.mm_prefix_max_ranges = 1;
  const AttentionPlan wide = given.plan();
  EXPECT_EQ(wide.num_partials, 5);
  expect_exact_cover(given, wide);
  given.mm_ranges = {0, 100};
  EXPECT_EQ(given.plan().num_partials, 0);
}

TEST(AttentionPlan, RowsWithoutKeysGetAnEmptyItem) {
  PlanCase given;
  given.add(3, 0);
  given.add(0, 7);
  given.add(5, 1);  // context_len -4
  const AttentionPlan plan = given.plan();
  ASSERT_EQ(plan.items.size(), 2u);
  EXPECT_EQ(plan.items[0].seq, 2);
  EXPECT_EQ(plan.items[0].kv_end, 1);
  EXPECT_EQ(plan.items[1].seq, 0);
  EXPECT_EQ(plan.items[1].token_count, 3);
  EXPECT_EQ(plan.items[1].kv_end, 0);
}

TEST(AttentionPlan, MostExpensiveFirstAndTheSameEveryTime) {
  PlanGenerator generator(13);
  for (int i = 0; i < 100; ++i) {
    PlanCase given = generator.make();
    given.variant = {};
    const AttentionPlan plan = given.plan();
    const AttentionPlan again = given.plan();
    ASSERT_EQ(plan.items.size(), again.items.size());
    std::int64_t previous = std::numeric_limits<std::int64_t>::max();
    for (std::size_t j = 0; j < plan.items.size(); ++j) {
      const WorkItem& item = plan.items[j];
      EXPECT_EQ(item.seq, again.items[j].seq);
      EXPECT_EQ(item.token_begin, again.items[j].token_begin);
      EXPECT_EQ(item.kv_begin, again.items[j].kv_begin);
      const std::int64_t cost = static_cast<std::int64_t>(item.token_count) * (item.kv_end - item.kv_begin);
      EXPECT_LE(cost, previous);
      previous = cost;
    }
  }
}

TEST(AttentionPlan, LengthsNearTheLargestPositionDoNotOverflow) {
  PlanCase given;
  given.add(1, std::numeric_limits<std::int32_t>::max());
  given.variant.window_left = 10;
  const AttentionPlan plan = given.plan();
  ASSERT_EQ(plan.items.size(), 1u);
  EXPECT_EQ(plan.items[0].kv_end, std::numeric_limits<std::int32_t>::max());
}

}  // namespace
}  // namespace quire
