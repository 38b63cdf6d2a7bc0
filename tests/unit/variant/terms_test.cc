// Tests of each term by itself, against the formula in its description.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "variant/logit.h"
#include "variant/number.h"

namespace quire {
namespace {

using Double = Scalar<double>;
using Float = Scalar<float>;

template <class N = Double>
At<N> at(std::int32_t kv_pos, std::int32_t q_pos, std::int32_t context_len = 0, std::int32_t q_head = 0) {
  return {kv_pos, q_pos, q_pos - context_len, context_len, q_head};
}

bool kept(const Variant& variant, std::int32_t kv_pos, std::int32_t q_pos, std::int32_t context_len = 0) {
  return fold_keep<Double>(terms_of(variant, 0), true, at(kv_pos, q_pos, context_len));
}

TEST(Softcap, IsStableForHugeLogits) {
  const terms::Softcap softcap{30.0f};
  for (double huge : {1e3, 1e30, 1e300, std::numeric_limits<double>::infinity()}) {
    EXPECT_DOUBLE_EQ(softcap.logit<Double>(huge, at(0, 0)), 30.0);
    EXPECT_DOUBLE_EQ(softcap.logit<Double>(-huge, at(0, 0)), -30.0);
  }
  EXPECT_EQ(softcap.logit<Float>(3e38f, at<Float>(0, 0)), 30.0f);
  EXPECT_EQ(softcap.logit<Float>(-3e38f, at<Float>(0, 0)), -30.0f);
  EXPECT_EQ(softcap.logit<Double>(0.0, at(0, 0)), 0.0);
  EXPECT_NEAR(softcap.logit<Double>(1e-9, at(0, 0)), 1e-9, 1e-18);
  EXPECT_NEAR(softcap.logit<Double>(15.0, at(0, 0)), 30.0 * std::tanh(0.5), 1e-14);
  EXPECT_FALSE(terms::Softcap{}.active());
}

TEST(Alibi, EachKind) {
  const float slopes[] = {0.5f, 0.25f};
  const auto added = [&](AlibiKind kind, std::int32_t kv_pos) {
    return terms::Alibi{kind, slopes}.logit<Double>(1.0, at(kv_pos, 9, 6, 1)) - 1.0;
  };
  EXPECT_DOUBLE_EQ(added(AlibiKind::kLinear, 2), 0.25 * (2 - 6));
  EXPECT_DOUBLE_EQ(added(AlibiKind::kLinear, 8), 0.25 * (8 - 6));
  EXPECT_DOUBLE_EQ(added(AlibiKind::kSqrt, 5), -0.25 * 2.0);
  EXPECT_DOUBLE_EQ(added(AlibiKind::kSqrt, 9), 0.0);
  EXPECT_DOUBLE_EQ(added(AlibiKind::kSqrt, 12), 0.0);
  EXPECT_DOUBLE_EQ(added(AlibiKind::kDistance, 5), -0.25 * 4);
  EXPECT_DOUBLE_EQ(added(AlibiKind::kDistance, 12), -0.25 * 3);
  EXPECT_FALSE((terms::Alibi{AlibiKind::kNone, slopes}.active()));
}

TEST(Causal, PerSequenceFlagOverrides) {
  const std::uint8_t flags[] = {0, 1};
  const Variant variant{.causal = true, .causal_per_seq = flags};
  EXPECT_TRUE(fold_keep<Double>(terms_of(variant, 0), true, at(9, 3)));
  EXPECT_FALSE(fold_keep<Double>(terms_of(variant, 1), true, at(9, 3)));
  EXPECT_TRUE(fold_keep<Double>(terms_of(variant, 1), true, at(3, 3)));
}

TEST(Window, OneAndTwoSided) {
  for (std::int32_t left : {-1, 0, 2, 50, std::numeric_limits<std::int32_t>::max()}) {
    for (std::int32_t right : {-1, 0, 3, 50, std::numeric_limits<std::int32_t>::max()}) {
      const Variant variant{.causal = false, .window_left = left, .window_right = right};
      for (std::int32_t kv_pos = 0; kv_pos < 20; ++kv_pos) {
        for (std::int32_t q_pos = 0; q_pos < 20; ++q_pos) {
          const bool want = (left < 0 || q_pos - kv_pos <= left) && (right < 0 || kv_pos - q_pos <= right);
          ASSERT_EQ(kept(variant, kv_pos, q_pos), want) << left << " " << right << " " << kv_pos << " " << q_pos;
        }
      }
    }
  }
}

TEST(Window, ZeroOnBothSidesIsTheTokenItself) {
  const Variant variant{.causal = false, .window_left = 0, .window_right = 0};
  for (std::int32_t kv_pos = 0; kv_pos < 5; ++kv_pos) EXPECT_EQ(kept(variant, kv_pos, 3), kv_pos == 3);
}

TEST(Chunk, KeepsItsOwnAndThoseBefore) {
  for (std::int32_t lookback : {0, 1, 3}) {
    const Variant variant{.chunk = 4, .chunk_lookback = lookback};
    for (std::int32_t q_pos = 0; q_pos < 20; ++q_pos) {
      for (std::int32_t kv_pos = 0; kv_pos <= q_pos; ++kv_pos) {
        ASSERT_EQ(kept(variant, kv_pos, q_pos), q_pos / 4 - kv_pos / 4 <= lookback) << kv_pos << " " << q_pos;
      }
    }
  }
}

TEST(MmPrefix, RangesOverrideCausalAndWindow) {
  const std::int32_t ranges[] = {2, 5, 8, 8, 7, 3, 10, 12};  // the second and third are padding
  const Variant variant{.window_left = 1, .mm_prefix_ranges = ranges, .mm_prefix_max_ranges = 4};
  for (std::int32_t q_pos = 0; q_pos < 15; ++q_pos) {
    for (std::int32_t kv_pos = 0; kv_pos < 15; ++kv_pos) {
      const bool inside = (q_pos >= 2 && q_pos <= 5 && kv_pos >= 2 && kv_pos <= 5) ||
                          (q_pos >= 10 && q_pos <= 12 && kv_pos >= 10 && kv_pos <= 12);
      const bool want = (kv_pos <= q_pos && q_pos - kv_pos <= 1) || inside;
      ASSERT_EQ(kept(variant, kv_pos, q_pos), want) << kv_pos << " " << q_pos;
    }
  }
  // Lanes beyond the keys at hand stay out.
  EXPECT_FALSE(fold_keep<Double>(terms_of(variant, 0), false, at(3, 3)));
}

// A root with two children, and a child of the first: rows 0, 1, 2, 3 at positions 10 to 13.
class TreeTest : public testing::Test {
 protected:
  Variant variant() const {
    Variant out;
    out.tree = {.size = size_, .mask_offset = offset_, .mask = mask_, .bias_offset = offset_, .bias = bias_};
    return out;
  }
  std::int32_t size_[2] = {4, 0};
  std::int64_t offset_[2] = {0, 0};
  std::uint64_t mask_[4] = {0b0001, 0b0011, 0b0101, 0b1011};
  float bias_[16] = {0, 9, 9, 9, 1, 0, 9, 9, 2, 9, 0, 9, 3, 4, 9, 0};
};

TEST_F(TreeTest, MaskOfAncestors) {
  const Variant tree = variant();
  for (std::int32_t row = 0; row < 4; ++row) {
    for (std::int32_t kv_pos = 0; kv_pos < 16; ++kv_pos) {
      const bool want = kv_pos < 10 || (kv_pos < 14 && (mask_[row] >> (kv_pos - 10) & 1) != 0);
      ASSERT_EQ(kept(tree, kv_pos, 10 + row, 10), want) << row << " " << kv_pos;
    }
  }
}

TEST_F(TreeTest, PlainRequestsCarryNone) {
  const Variant tree = variant();
  const Terms plain = terms_of(tree, 1);
  EXPECT_FALSE(plain.tree.active());
  EXPECT_TRUE(fold_keep<Double>(plain, true, at(11, 12, 10)));
  EXPECT_TRUE(terms_of(tree, 0).tree.active());
}

TEST_F(TreeTest, BiasIsAddedAfterTheCapAndAlibi) {
  Variant tree = variant();
  const float slope = 0.5f;
  tree.softcap = 2.0f;
  tree.alibi = AlibiKind::kLinear;
  tree.alibi_slopes = &slope;
  const auto logit = [&](std::int32_t kv_pos) {
    return fold_logit<Double>(terms_of(tree, 0), 5.0, at(kv_pos, 13, 10));
  };
  const double capped = 2.0 * std::tanh(2.5);
  EXPECT_NEAR(logit(11), capped + 0.5 * 1 + 4.0, 1e-12);
  EXPECT_NEAR(logit(3), capped + 0.5 * (3 - 10), 1e-12);  // the context has no bias
}

TEST_F(TreeTest, MasksOfMoreThanOneWord) {
  size_[0] = 70;
  std::vector<std::uint64_t> mask(140, 0);
  mask[2 * 69] = 1;                          // row 69 sees node 0 ...
  mask[2 * 69 + 1] = std::uint64_t{1} << 5;  // ... and itself
  Variant tree;
  tree.tree = {.size = size_, .mask_offset = offset_, .mask = mask.data()};
  for (std::int32_t node = 0; node < 70; ++node) {
    EXPECT_EQ(kept(tree, 10 + node, 79, 10), node == 0 || node == 69) << node;
  }
}

TEST(Sink, GivesItsLogit) {
  const float sinks[] = {1.5f, -2.0f};
  const Variant variant{.sinks = sinks};
  EXPECT_EQ(terms_of(variant, 0).sink.sink(1), -2.0f);
  EXPECT_TRUE(terms_of(variant, 0).sink.active());
  EXPECT_FALSE(terms_of(Variant{}, 0).sink.active());
}

TEST(Terms, HasLogitTerms) {
  EXPECT_FALSE(has_logit_terms(terms_of(Variant{.window_left = 3}, 0)));
  EXPECT_TRUE(has_logit_terms(terms_of(Variant{.softcap = 3.0f}, 0)));
}

}  // namespace
}  // namespace quire
