// GPT-OSS against transformers: sinks, alternating windows, YaRN, the mixture of experts.
#include <gtest/gtest.h>

#include "unit/models/family_parity.h"

namespace quire::parity {
namespace {

TEST(GptOss, MatchesTransformersOnEveryBackendWithSinks) {
  for (const char* backend : {"", "TRITON_ATTN", "TRITON_ATTN_DIFFKV"}) {
    expect_parity({.fixture = "gpt_oss", .backend = backend});
  }
}

TEST(GptOss, MatchesTransformersInChunks) { expect_parity({.fixture = "gpt_oss", .chunk = 10}); }

TEST(GptOss, NamesTheReasonWhereABackendHasNoSinks) {
  const std::string error = load_error({.fixture = "gpt_oss", .backend = "XFORMERS"});
  EXPECT_NE(error.find("sinks"), std::string::npos) << error;
}

TEST(GptOss, RefusesBadExperts) {
  const std::string many = changed_load_error("gpt_oss", "num_experts_per_tok", "5");
  EXPECT_NE(many.find("num_experts_per_tok"), std::string::npos) << many;
  const std::string shape = changed_load_error("gpt_oss", "num_local_experts", "3");
  EXPECT_NE(shape.find("router"), std::string::npos) << shape;
  EXPECT_NE(changed_load_error("gpt_oss", "hidden_act", "\"gelu\""), "");
}

TEST(GptOss, RunsInBfloat16) { expect_bfloat16("gpt_oss"); }

}  // namespace
}  // namespace quire::parity
