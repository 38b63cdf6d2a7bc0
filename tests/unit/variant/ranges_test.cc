// Tests the two laws of key ranges by brute force: clip drops no kept key, interior holds kept keys only.
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "variant/logit.h"
#include "variant/number.h"

namespace quire {
namespace {

using Double = Scalar<double>;

// A random variant with its arrays, and the sequence it is asked about.
struct Example {
  Variant variant;
  std::vector<std::int32_t> ranges;
  std::vector<std::uint64_t> mask;
  std::int32_t tree_size = 0;
  std::int64_t zero = 0;
  std::int32_t context_len = 0;
  std::int32_t query_len = 1;

  std::int32_t seq_len() const { return context_len + query_len; }
  std::string text() const {
    return "causal " + std::to_string(variant.causal) + " window " + std::to_string(variant.window_left) + "," +
           std::to_string(variant.window_right) + " chunk " + std::to_string(variant.chunk) + " back " +
           std::to_string(variant.chunk_lookback) + " tree " + std::to_string(tree_size) + " ranges " +
           std::to_string(ranges.size() / 2) + " context " + std::to_string(context_len) + " query " +
           std::to_string(query_len);
  }
};

class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}
  std::int32_t below(std::int32_t end) { return static_cast<std::int32_t>(engine_() % static_cast<unsigned>(end)); }
  bool one_in(std::int32_t n) { return below(n) == 0; }
  std::uint64_t bits() { return (std::uint64_t{engine_()} << 32) | engine_(); }

 private:
  std::mt19937 engine_;
};

void make_example(Random& random, Example& out) {
  out.context_len = random.below(40);
  out.query_len = 1 + random.below(random.one_in(4) ? 70 : 20);
  Variant& variant = out.variant;
  variant.causal = !random.one_in(3);
  if (random.one_in(2)) variant.window_left = random.one_in(10) ? INT32_MAX : random.below(30);
  if (random.one_in(3)) variant.window_right = random.one_in(10) ? INT32_MAX : random.below(30);
  if (random.one_in(3)) {
    variant.chunk = 1 + random.below(16);
    variant.chunk_lookback = random.below(3);
  }
  if (random.one_in(3)) {
    out.tree_size = random.one_in(4) ? 1 + random.below(out.query_len) : out.query_len;
    const std::int32_t words = (out.tree_size + 63) / 64;
    for (std::int32_t i = 0; i < out.tree_size * words; ++i) out.mask.push_back(random.bits() & random.bits());
    variant.tree = {.size = &out.tree_size, .mask_offset = &out.zero, .mask = out.mask.data()};
  }
  if (random.one_in(2)) {
    const std::int32_t count = 1 + random.below(3);
    for (std::int32_t i = 0; i < count; ++i) {
      const std::int32_t start = random.below(out.seq_len());
      out.ranges.push_back(start);
      out.ranges.push_back(start - 3 + random.below(25));
    }
    variant.mm_prefix_ranges = out.ranges.data();
    variant.mm_prefix_max_ranges = count;
  }
}

void check_example(const Example& example, Random& random, std::int64_t& clipped_away, std::int64_t& inside) {
  const Terms terms = terms_of(example.variant, 0);
  const std::int32_t first = random.below(example.query_len);
  const std::int32_t last = first + random.below(example.query_len - first);
  const RowSpan rows{first, last, example.context_len};
  const std::int32_t begin = random.one_in(3) ? random.below(example.seq_len()) : 0;
  const std::int32_t end = begin + random.below(example.seq_len() - begin + 1);
  const KeyRange all{begin, end};
  const KeyRange clip = fold_clip(terms, all, rows);
  const KeyRange interior = fold_interior(terms, all, rows);
  if (!clip.is_empty()) {
    ASSERT_GE(clip.begin, begin);
    ASSERT_LE(clip.end, end);
  }
  for (std::int32_t kv_pos = begin; kv_pos < end; ++kv_pos) {
    const bool in_clip = kv_pos >= clip.begin && kv_pos < clip.end;
    const bool in_interior = kv_pos >= interior.begin && kv_pos < interior.end;
    clipped_away += in_clip ? 0 : 1;
    inside += in_interior ? 1 : 0;
    for (std::int32_t row = first; row <= last; ++row) {
      const At<Double> where{kv_pos, example.context_len + row, row, example.context_len, 0};
      const bool kept = fold_keep<Double>(terms, true, where);
      ASSERT_TRUE(in_clip || !kept) << "clip drops key " << kv_pos << " of row " << row;
      ASSERT_TRUE(kept || !in_interior) << "interior holds masked key " << kv_pos << " of row " << row;
    }
  }
}

TEST(KeyRanges, ClipAndInteriorKeepTheirLaws) {
  Random random(1);
  std::int64_t clipped_away = 0;
  std::int64_t inside = 0;
  for (int i = 0; i < 20000; ++i) {
    Example example;
    make_example(random, example);
    SCOPED_TRACE(example.text());
    check_example(example, random, clipped_away, inside);
    ASSERT_FALSE(testing::Test::HasFatalFailure());
  }
  // The laws alone would hold for ranges that never help.
  EXPECT_GT(clipped_away, 10000);
  EXPECT_GT(inside, 10000);
}

TEST(KeyRanges, PlainCausalIsTight) {
  const Terms terms = terms_of(Variant{}, 0);
  const KeyRange clip = fold_clip(terms, {0, 100}, {4, 7, 50});
  EXPECT_EQ(clip.begin, 0);
  EXPECT_EQ(clip.end, 58);
  EXPECT_EQ(fold_interior(terms, {0, 100}, {4, 7, 50}).end, 55);
}

TEST(KeyRanges, WindowIsTight) {
  const Terms terms = terms_of(Variant{.window_left = 10}, 0);
  EXPECT_EQ(fold_clip(terms, {0, 100}, {4, 7, 50}).begin, 44);
  EXPECT_EQ(fold_interior(terms, {0, 100}, {4, 7, 50}).begin, 47);
}

}  // namespace
}  // namespace quire
