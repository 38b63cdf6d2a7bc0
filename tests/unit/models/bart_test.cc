// BART against transformers: the encoder, and a decoder that attends to it through a paged cache.
#include <gtest/gtest.h>

#include <vector>

#include "unit/models/family_parity.h"
#include "unit/models/parity.h"

namespace quire::parity {
namespace {

TEST(Bart, MatchesTransformers) {
  expect_cross_parity({.fixture = "bart"});
  expect_cross_parity({.fixture = "bart", .backend = "TRITON_ATTN"});
}

TEST(Bart, RefusesBackendsWithoutCrossAttention) {
  const std::string error = load_error({.fixture = "bart", .backend = "XFORMERS"});
  EXPECT_NE(error.find("attention type"), std::string::npos) << error;
}

TEST(Bart, RefusesEncoderInputsThatItCannotTake) {
  const auto runner = load_runner(fixture("bart"), {.dtype = DType::kFloat32});
  ASSERT_TRUE(runner.ok()) << runner.status().to_string();
  const std::vector<BlockId> blocks = some_blocks(160);
  const auto encode = [&](const std::vector<std::int32_t>& tokens) { return (*runner)->encode(tokens, blocks).ok(); };
  EXPECT_FALSE(encode({}));
  EXPECT_FALSE(encode({3, 160}));
  EXPECT_FALSE(encode(std::vector<std::int32_t>(129, 3)));
  EXPECT_TRUE(encode(std::vector<std::int32_t>(128, 3)));
}

TEST(Bart, RefusesVariantsOfTheLayer) {
  for (const char* key : {"normalize_before", "add_final_layer_norm", "static_position_embeddings"}) {
    const std::string status = changed_load_error("bart", key, "true");
    EXPECT_NE(status.find(key), std::string::npos) << status;
  }
}

}  // namespace
}  // namespace quire::parity
