// DeepSeek-V2 against transformers: keys wider than values on TRITON_ATTN_DIFFKV, interleaved rotation, YaRN.
#include <gtest/gtest.h>

#include "unit/models/family_parity.h"

namespace quire::parity {
namespace {

TEST(DeepseekV2, MatchesTransformersWithKeysOf192AndValuesOf128) {
  expect_parity({.fixture = "deepseek_v2", .backend = "TRITON_ATTN_DIFFKV"});
}

TEST(DeepseekV2, MatchesTransformersWithFullRankQueriesAndYarn) {
  expect_parity({.fixture = "deepseek_v2_yarn", .backend = "TRITON_ATTN_DIFFKV"});
}

TEST(DeepseekV2, MatchesTransformersInChunks) {
  expect_parity({.fixture = "deepseek_v2", .chunk = 10});
  expect_parity({.fixture = "deepseek_v2_yarn", .chunk = 10});
}

TEST(DeepseekV2, TakesNoBackendWhoseValuesAreAsWideAsKeys) {
  const std::string error = load_error({.fixture = "deepseek_v2", .backend = "TRITON_ATTN"});
  EXPECT_NE(error.find("head_size"), std::string::npos) << error;
}

TEST(DeepseekV2, RefusesMixtureLayers) {
  const std::string status = changed_load_error("deepseek_v2", "first_k_dense_replace", "1");
  EXPECT_NE(status.find("first_k_dense_replace"), std::string::npos) << status;
}

TEST(DeepseekV2, RefusesTensorsOfTheWrongShape) {
  const std::string status = changed_load_error("deepseek_v2", "kv_lora_rank", "16");
  EXPECT_NE(status.find("kv_a_proj_with_mqa"), std::string::npos) << status;
}

TEST(DeepseekV2, RunsInBfloat16) { expect_bfloat16("deepseek_v2"); }

}  // namespace
}  // namespace quire::parity
