// Gemma-2 against transformers: caps, alternating windows, norms of 1 + weight, head size not hidden size / heads.
#include <gtest/gtest.h>

#include "unit/models/family_parity.h"

namespace quire::parity {
namespace {

TEST(Gemma2, MatchesTransformersOnEveryBackendThatCanRunIt) {
  for (const char* backend : {"", "TRITON_ATTN", "XFORMERS", "TREE_ATTN", "TRITON_ATTN_DIFFKV"}) {
    expect_parity({.fixture = "gemma2", .backend = backend});
  }
}

TEST(Gemma2, MatchesTransformersInChunks) { expect_parity({.fixture = "gemma2", .chunk = 10}); }

TEST(Gemma2, RefusesWhatItDoesNotCompute) {
  const std::string both_ways = changed_load_error("gemma2", "use_bidirectional_attention", "true");
  EXPECT_NE(both_ways.find("use_bidirectional_attention"), std::string::npos) << both_ways;
  const std::string unknown = changed_load_error("gemma2", "some_new_key", "1");
  EXPECT_NE(unknown.find("config.json: key 'some_new_key'"), std::string::npos) << unknown;
  EXPECT_NE(changed_load_error("gemma2", "attn_logit_softcapping", "-1.0"), "");
  EXPECT_NE(changed_load_error("gemma2", "query_pre_attn_scalar", "0"), "");
  EXPECT_EQ(changed_load_error("gemma2", "attn_logit_softcapping", "null"), "");
}

TEST(Gemma2, RunsInBfloat16) { expect_bfloat16("gemma2"); }

}  // namespace
}  // namespace quire::parity
