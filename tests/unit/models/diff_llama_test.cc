// DiffLlama against transformers: its pairs of heads become those of DIFFERENTIAL_FLASH_ATTN.
#include <gtest/gtest.h>

#include "unit/models/family_parity.h"

namespace quire::parity {
namespace {

TEST(DiffLlama, MatchesTransformers) { expect_parity({.fixture = "diffllama", .backend = "DIFFERENTIAL_FLASH_ATTN"}); }

TEST(DiffLlama, MatchesTransformersInChunks) { expect_parity({.fixture = "diffllama", .chunk = 10}); }

TEST(DiffLlama, TakesNoOtherBackend) {
  const std::string error = load_error({.fixture = "diffllama", .backend = "TRITON_ATTN"});
  EXPECT_NE(error.find("differential"), std::string::npos) << error;
}

TEST(DiffLlama, RefusesAnOddNumberOfHeads) {
  const std::string status = changed_load_error("diffllama", "num_key_value_heads", "1");
  EXPECT_NE(status.find("num_key_value_heads"), std::string::npos) << status;
}

TEST(DiffLlama, RunsInBfloat16) { expect_bfloat16("diffllama"); }

}  // namespace
}  // namespace quire::parity
