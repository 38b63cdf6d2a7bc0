// make_attention_plan: cuts a batch into tiles of rows, bounds their keys by the terms and splits long decodes.
#include <algorithm>
#include <cstdint>

#include "quire/plan.h"
#include "variant/logit.h"

namespace quire {
namespace {

// An item with its cost: rows x keys, so that the longest ones start first and the short ones fill the gaps.
struct CostedItem {
  std::int64_t cost = 0;
  WorkItem item;
};

class Planner {
 public:
  Planner(const PlanConfig& config, const Variant& variant)
      : rows_per_token_(std::max(config.rows_per_token, 1)),
        tile_tokens_(std::max(config.tile_rows / rows_per_token_, 1)),
        split_rows_(config.split_rows),
        variant_(variant) {}

  void add_sequence(std::int32_t seq, std::int32_t query_len, std::int32_t seq_len) {
    const Terms terms = terms_of(variant_, seq);
    const std::int64_t rows = static_cast<std::int64_t>(query_len) * rows_per_token_;
    const bool splits_keys = query_len == 1 || rows <= split_rows_;
    for (std::int32_t begin = 0; begin < query_len;) {
      const std::int32_t count = std::min(tile_tokens_, query_len - begin);
      const Tile tile{seq, begin, count, {begin, begin + count - 1, seq_len - query_len}};
      const KeyRange hull = fold_clip(terms, {0, std::max(seq_len, 0)}, tile.rows);
      if (hull.is_empty()) {
        add_item(tile, {0, 0}, -1);
      } else if (splits_keys) {
        add_splits(tile, terms, hull);
      } else {
        add_item(tile, hull, -1);
      }
      begin += count;
    }
  }

  AttentionPlan finish() {
    std::stable_sort(items_.begin(), items_.end(),
                     [](const CostedItem& a, const CostedItem& b) { return a.cost > b.cost; });
    plan_.items.reserve(items_.size());
    for (const CostedItem& costed : items_) plan_.items.push_back(costed.item);
    return std::move(plan_);
  }

 private:
  struct Tile {
    std::int32_t seq = 0;
    std::int32_t token_begin = 0;
    std::int32_t token_count = 0;
    RowSpan rows;
  };

  void add_item(const Tile& tile, KeyRange keys, std::int32_t partial) {
    const std::int64_t rows = static_cast<std::int64_t>(tile.token_count) * rows_per_token_;
    items_.push_back({rows * (keys.end - keys.begin),
                      {.seq = tile.seq,
                       .token_begin = tile.token_begin,
                       .token_count = tile.token_count,
                       .kv_begin = keys.begin / kSplitTokens * kSplitTokens,
                       .kv_end = keys.end,
                       .partial = partial}});
  }

  // One item a split of the hull that any row sees.
  void add_splits(const Tile& tile, const Terms& terms, KeyRange hull) {
    splits_.clear();
    for (std::int64_t begin = hull.begin / kSplitTokens * kSplitTokens; begin < hull.end; begin += kSplitTokens) {
      const KeyRange split{static_cast<std::int32_t>(begin),
                           static_cast<std::int32_t>(std::min<std::int64_t>(begin + kSplitTokens, hull.end))};
      const KeyRange seen = fold_clip(terms, split, tile.rows);
      if (!seen.is_empty()) splits_.push_back(seen);
    }
    if (splits_.size() < 2) return add_item(tile, splits_.empty() ? KeyRange{0, 0} : splits_.front(), -1);
    const std::int32_t first_partial = plan_.num_partials;
    for (const KeyRange& seen : splits_) add_item(tile, seen, plan_.num_partials++);
    plan_.max_partial_tokens = std::max(plan_.max_partial_tokens, tile.token_count);
    plan_.merges.push_back({.seq = tile.seq,
                            .token_begin = tile.token_begin,
                            .token_count = tile.token_count,
                            .first_partial = first_partial,
                            .num_partials = static_cast<std::int32_t>(splits_.size())});
  }

  std::int32_t rows_per_token_;
  std::int32_t tile_tokens_;
  std::int32_t split_rows_;
  const Variant& variant_;
  std::vector<CostedItem> items_;
  std::vector<KeyRange> splits_;
  AttentionPlan plan_;
};

}  // namespace

AttentionPlan make_attention_plan(const PlanConfig& config, std::span<const std::int32_t> query_start_loc,
                                  std::span<const std::int32_t> seq_lens, const Variant& variant) {
  Planner planner(config, variant);
  for (std::size_t seq = 0; seq < seq_lens.size(); ++seq) {
    planner.add_sequence(static_cast<std::int32_t>(seq), query_start_loc[seq + 1] - query_start_loc[seq],
                         seq_lens[seq]);
  }
  return planner.finish();
}

}  // namespace quire
