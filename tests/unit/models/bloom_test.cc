// BLOOM against transformers: ALiBi for six heads, the fused projection, the norm after the embedding.
#include <gtest/gtest.h>

#include <cmath>

#include "models/alibi.h"
#include "unit/models/family_parity.h"

namespace quire::parity {
namespace {

TEST(Bloom, MatchesTransformersOnEveryBackendThatCanRunIt) {
  for (const char* backend : {"", "TRITON_ATTN", "XFORMERS", "TREE_ATTN", "TRITON_ATTN_DIFFKV"}) {
    expect_parity({.fixture = "bloom", .backend = backend});
  }
}

TEST(Bloom, MatchesTransformersInChunks) { expect_parity({.fixture = "bloom", .chunk = 10}); }

TEST(Bloom, SlopesFollowTheGeometricSequence) {
  const std::vector<float> eight = alibi_slopes(8);
  ASSERT_EQ(eight.size(), 8U);
  for (int i = 0; i < 8; ++i)
    EXPECT_FLOAT_EQ(eight[static_cast<std::size_t>(i)], std::exp2(-static_cast<float>(i + 1)));
  const std::vector<float> six = alibi_slopes(6);
  const std::vector<float> wanted = {0.25F, 0.0625F, 0.015625F, 0.00390625F, 0.5F, 0.125F};
  EXPECT_EQ(six, wanted);
}

TEST(Bloom, RefusesWhatItDoesNotCompute) {
  const std::string inner = changed_load_error("bloom", "n_inner", "100");
  EXPECT_NE(inner.find("n_inner"), std::string::npos) << inner;
  EXPECT_NE(changed_load_error("bloom", "n_head", "7"), "");
  EXPECT_NE(changed_load_error("bloom", "slow_but_exact", "true"), "");
}

TEST(Bloom, RunsInBfloat16) { expect_bfloat16("bloom"); }

}  // namespace
}  // namespace quire::parity
