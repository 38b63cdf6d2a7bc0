// MPT against transformers: its own form of ALiBi for six heads, no biases.
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

#include "models/alibi.h"
#include "unit/models/family_parity.h"
#include "unit/models/parity.h"

namespace quire::parity {
namespace {

TEST(Mpt, MatchesTransformersOnEveryBackendThatCanRunIt) {
  for (const char* backend : {"", "TRITON_ATTN", "XFORMERS", "TREE_ATTN", "TRITON_ATTN_DIFFKV"}) {
    expect_parity({.fixture = "mpt", .backend = backend});
  }
}

TEST(Mpt, MatchesTransformersInChunks) { expect_parity({.fixture = "mpt", .chunk = 10}); }

TEST(Mpt, MatchesTransformersWithClippedProjectionsAndItsOwnScale) {
  std::ifstream in(fixture("mpt") + "/config_clip.json");
  const std::string config((std::istreambuf_iterator<char>(in)), {});
  const ChangedFixture clipped("mpt", config);
  const auto runner = load_runner(clipped.folder(), {.dtype = DType::kFloat32});
  ASSERT_TRUE(runner.ok()) << runner.status().to_string();
  const SafetensorsFile expected = open_file(fixture("mpt") + "/expected_clip.safetensors");
  const Result<std::vector<float>> logits = run_chunks(**runner, ids_of(expected, "input_ids_33"), 0, 10);
  ASSERT_TRUE(logits.ok()) << logits.status().to_string();
  EXPECT_LE(relative_error(*logits, floats_of(expected, "logits_33")), kTolerance);
}

TEST(Mpt, SlopesOfHeadsThatAreNoPowerOfTwoComeInTwoRounds) {
  const std::vector<float> six = mpt_alibi_slopes(6);
  const std::vector<float> wanted = {0.25F, 0.0625F, 0.015625F, 0.00390625F, 0.5F, 0.125F};
  EXPECT_EQ(six, wanted);
  const std::vector<float> two = mpt_alibi_slopes(2);
  EXPECT_EQ(two, (std::vector<float>{0.0625F, 0.00390625F}));
}

TEST(Mpt, RefusesWhatItDoesNotCompute) {
  for (const auto& [key, value] :
       {std::pair("attn_config/alibi", "false"), std::pair("attn_config/qk_ln", "true"),
        std::pair("attn_config/alibi_bias_max", "4"), std::pair("attn_config/prefix_lm", "true"),
        std::pair("logit_scale", "0.5"), std::pair("no_bias", "false"), std::pair("attn_config/rope", "true")}) {
    const std::string status = changed_load_error("mpt", key, value);
    const std::string name = std::string(key).substr(std::string(key).rfind('/') + 1);
    EXPECT_NE(status.find(name), std::string::npos) << key << ": " << status;
  }
}

TEST(Mpt, RunsInBfloat16) { expect_bfloat16("mpt"); }

}  // namespace
}  // namespace quire::parity
