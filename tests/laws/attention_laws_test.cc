// Laws that attention obeys bit by bit, whatever the numbers: who shares a batch, how a prompt is cut, where blocks
// lie.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "support/attention_case.h"
#include "support/runtimes.h"

namespace quire::testing {
namespace {

using Bits = std::vector<unsigned char>;

constexpr int kCases = kSanitized ? 12 : 120;

// The bits of every token of the batch.
std::vector<Bits> run_bits(const CaseShape& shape, const Runtime& runtime, PlanConfig config = {}) {
  AttentionCase c(shape);
  const Status status = c.run(runtime, config);
  EXPECT_TRUE(status.ok()) << status.to_string() << "\n" << describe(shape);
  EXPECT_TRUE(c.is_memory_intact()) << describe(shape);
  std::vector<Bits> rows;
  for (std::int32_t token = 0; token < c.args().num_tokens; ++token) rows.push_back(c.row_bits(token));
  return rows;
}

class AttentionLaws : public ::testing::TestWithParam<Isa> {
 protected:
  Runtime runtime(int num_threads = 1) const { return cpu_runtime(GetParam(), num_threads); }

  void expect_same(const CaseShape& a, const CaseShape& b) const {
    EXPECT_EQ(run_bits(a, runtime()), run_bits(b, runtime())) << describe(a) << "\n" << describe(b);
  }
};

// A causal batch with long contexts, whose splits are crossed now and then.
CaseShape paged_shape(std::uint64_t seed) {
  CaseShape shape = random_shape(seed);
  if (shape.contiguous) {
    shape.contiguous = false;
    shape.head_size_v = shape.head_size = 32;
    if (shape.is_differential()) shape.num_kv_heads = 2;
  }
  return shape;
}

TEST_P(AttentionLaws, AnyNumberOfThreadsGivesTheSameBits) {
  for (std::uint64_t seed = 1; seed <= kCases; ++seed) {
    const CaseShape shape = random_shape(seed);
    const auto one = run_bits(shape, runtime(1));
    for (int threads : {2, 3, 7})
      EXPECT_EQ(one, run_bits(shape, runtime(threads))) << threads << " threads, " << describe(shape);
  }
}

TEST_P(AttentionLaws, ABatchEqualsItsSequencesOneByOne) {
  for (std::uint64_t seed = 1000; seed < 1000 + 2 * kCases; ++seed) {
    const CaseShape shape = random_shape(seed);
    if (shape.mm_ranges > 0) continue;  // drawn for the whole batch
    const auto together = run_bits(shape, runtime());
    std::vector<Bits> apart;
    for (std::size_t i = 0; i < shape.requests.size(); ++i) {
      CaseShape alone = shape;
      alone.requests = {shape.requests[i]};
      if (!shape.causal_per_seq.empty()) alone.causal_per_seq = {shape.causal_per_seq[i]};
      for (Bits& row : run_bits(alone, runtime())) apart.push_back(std::move(row));
    }
    EXPECT_EQ(together, apart) << describe(shape);
  }
}

TEST_P(AttentionLaws, APromptFedInChunksEqualsThePromptFedWhole) {
  Random random(7);
  for (std::uint64_t seed = 2000; seed < 2000 + kCases; ++seed) {
    CaseShape whole = paged_shape(seed);
    whole.causal = true;
    whole.causal_per_seq.clear();
    whole.window_right = -1;
    whole.mm_ranges = 0;
    if (whole.alibi == AlibiKind::kLinear) whole.alibi = AlibiKind::kDistance;  // kLinear counts from the chunk's start
    whole.tree_bias = false;
    const bool is_long = seed % 10 == 0;
    if (is_long) {  // few long prompts: two splits and a bit
      whole.head_size = 16;
      whole.head_size_v = 16;
      whole.group_size = 1;
    }
    const std::int32_t length = is_long ? random.between(2050, 2200) : random.between(1, 90);
    whole.requests = {{.content = 3, .query_len = length, .seq_len = length, .tree_parents = {}}};
    const auto expected = run_bits(whole, runtime());
    std::vector<Bits> pieces;
    for (std::int32_t begin = 0; begin < length;) {
      const std::int32_t longest = is_long ? 400 : 9;
      const std::int32_t count = std::min(length - begin, random.chance(0.3) ? 1 : random.between(1, longest));
      CaseShape chunk = whole;
      chunk.requests = {{.content = 3, .query_len = count, .seq_len = begin + count, .tree_parents = {}}};
      for (Bits& row : run_bits(chunk, runtime())) pieces.push_back(std::move(row));
      begin += count;
    }
    EXPECT_EQ(expected, pieces) << describe(whole);
  }
}

TEST_P(AttentionLaws, BlockSizeOrderAndLayoutDoNotMatter) {
  for (std::uint64_t seed = 3000; seed < 3000 + kCases; ++seed) {
    CaseShape a = paged_shape(seed);
    if (a.is_differential()) continue;
    a.format = KVCacheFormat::kPackedKV;
    a.head_size = a.head_size_v = 40;
    a.num_layers = 1;
    a.layout = KVCacheLayout::kNHD;
    for (KVCacheFormat format : {KVCacheFormat::kPackedKV, KVCacheFormat::kBlockFirst, KVCacheFormat::kKVFirst}) {
      CaseShape b = a;
      b.format = format;
      b.block_size = 7;
      b.scales = a.scales == ScalePlacement::kInline ? ScalePlacement::kSeparate : ScalePlacement::kInline;
      if (format != KVCacheFormat::kKVFirst) {
        b.layout = KVCacheLayout::kHND;
        b.num_layers = 2;
      }
      expect_same(a, b);
    }
  }
}

TEST_P(AttentionLaws, OneSplitEqualsManyMerged) {
  for (std::uint64_t seed = 4000; seed < 4000 + kCases; ++seed) {
    CaseShape shape = paged_shape(seed);
    shape.requests.resize(1);
    shape.requests[0].seq_len += 1500;
    shape.head_size = shape.head_size_v = 16;
    const auto whole = run_bits(shape, runtime(), {.tile_rows = 512, .split_rows = 0});
    EXPECT_EQ(whole, run_bits(shape, runtime(), {.tile_rows = 1, .split_rows = 4096})) << describe(shape);
    EXPECT_EQ(whole, run_bits(shape, runtime(), {.tile_rows = 17, .split_rows = 0})) << describe(shape);
  }
}

TEST_P(AttentionLaws, AChainTreeEqualsCausal) {
  for (std::uint64_t seed = 5000; seed < 5000 + kCases; ++seed) {
    CaseShape causal = paged_shape(seed);
    causal.causal = true;
    causal.causal_per_seq.clear();
    causal.tree_bias = false;
    causal.mm_ranges = 0;
    CaseShape chain = causal;
    for (std::size_t i = 0; i < chain.requests.size(); ++i) {
      causal.requests[i].tree_parents.clear();
      chain.requests[i].tree_parents.clear();
      for (std::int32_t node = 1; node < chain.requests[i].query_len; ++node)
        chain.requests[i].tree_parents.push_back(node - 1);
    }
    expect_same(causal, chain);
  }
}

TEST_P(AttentionLaws, AWindowBeyondTheLengthEqualsNone) {
  for (std::uint64_t seed = 6000; seed < 6000 + kCases; ++seed) {
    CaseShape open = random_shape(seed);
    open.window_left = open.window_right = -1;
    CaseShape wide = open;
    wide.window_left = 100000;
    if (!wide.causal) wide.window_right = 100000;
    expect_same(open, wide);
  }
}

// With lambda 0 and no norm, a pair's output is ordinary attention of its first head over [V1 V2].
TEST_P(AttentionLaws, DifferentialWithLambdaZeroEqualsOrdinary) {
  for (std::uint64_t seed = 7000; seed < 7000 + kCases; ++seed) {
    CaseShape shape = paged_shape(seed);
    shape.format = KVCacheFormat::kDifferential;
    shape.layout = KVCacheLayout::kNHD;
    shape.num_layers = 1;
    shape.num_kv_heads = 4;
    shape.head_size = shape.head_size_v = 24;
    shape.output_dtype = DType::kFloat32;
    shape.output_scale = 0.0f;
    shape.output_block_scales = false;
    shape.lambda = 0.0f;
    shape.subln = false;
    shape.sinks = false;
    shape.alibi = AlibiKind::kNone;
    AttentionCase differential(shape);
    ASSERT_TRUE(differential.run(runtime()).ok()) << describe(shape);
    for (int half = 0; half < 2; ++half) {
      AttentionCase plain(shape);
      AttentionArgs& args = plain.args();
      args.kv.num_streams = 1;
      args.kv.value[0] = args.kv.value[half];
      args.num_q_heads /= 2;
      args.query_head_stride *= 2;
      args.differential = {};
      ASSERT_TRUE(plain.run(runtime()).ok()) << describe(shape);
      const std::int64_t size = shape.head_size_v;
      for (std::int32_t token = 0; token < args.num_tokens; ++token) {
        const auto want = plain.output_row(token);
        const auto got = differential.output_row(token);
        for (std::int64_t i = 0; i < args.num_q_heads * size; ++i) {
          const std::int64_t at = (i / size) * 2 * size + half * size + i % size;
          ASSERT_EQ(want[static_cast<std::size_t>(i)], got[static_cast<std::size_t>(at)]) << describe(shape);
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, AttentionLaws, ::testing::ValuesIn(available_isas()),
                         [](const auto& tested) { return std::string(isa_name(tested.param)); });

}  // namespace
}  // namespace quire::testing
