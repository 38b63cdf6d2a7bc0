// Tests of the batch-spec grammar and of the published sets.
#include "cli/bench/batch_spec.h"

#include <gtest/gtest.h>

namespace quire::cli {
namespace {

using Batch = std::vector<BatchRequest>;

TEST(BatchSpec, ParsesTheGrammar) {
  EXPECT_EQ(*parse_batch_spec("q2k"), (Batch{{2048, 2048}}));
  EXPECT_EQ(*parse_batch_spec("q512"), (Batch{{512, 512}}));
  EXPECT_EQ(*parse_batch_spec("2q1s1k"), (Batch{{1, 1024}, {1, 1024}}));
  EXPECT_EQ(*parse_batch_spec("q1ks2k"), (Batch{{1024, 2048}}));
  EXPECT_EQ(*parse_batch_spec("2q1k_3q1s7"), (Batch{{1024, 1024}, {1024, 1024}, {1, 7}, {1, 7}, {1, 7}}));
  EXPECT_EQ(parse_batch_spec("q257_7q1s1057_3q4s2051_2q129s4093")->size(), 13u);
}

TEST(BatchSpec, RefusesEverythingElse) {
  for (const char* text : {"",
                           "_",
                           "q",
                           "qk",
                           "2",
                           "s1k",
                           "q1s",
                           "q1ss2",
                           "q1k2",
                           "q1s2_",
                           "_q1",
                           "q1 ",
                           "q-1",
                           "0q1",
                           "q0",
                           "q2s1",
                           "q1s99999999",
                           "99999999q1",
                           "q1s2m",
                           "Q1",
                           "65537q1",
                           "q99999999999999999999"}) {
    const auto batch = parse_batch_spec(text);
    EXPECT_FALSE(batch.ok()) << text;
    EXPECT_NE(batch.status().message().find("segment"), std::string::npos) << text;
  }
}

TEST(BatchSpec, PrintsWhatItParses) {
  for (const char* text : {"q2k", "8q1s4k", "2q1k_32q1s1k", "q257_7q1s1057_3q4s2051_2q129s4093", "q1ks2k", "q1"}) {
    EXPECT_EQ(batch_spec_string(*parse_batch_spec(text)), text);
  }
}

TEST(BatchSpec, SetsParse) {
  for (const char* name :
       {"standard_attention", "standard_decode", "standard_prefill", "production_mix", "speculative_decode"}) {
    const auto set = batch_set(name);
    ASSERT_TRUE(set.ok()) << name;
    EXPECT_GT(set->size(), 8u);
    for (const std::string& spec : *set) EXPECT_TRUE(parse_batch_spec(spec).ok()) << spec;
  }
  EXPECT_EQ(batch_set("standard_decode")->size(), 63u);
  EXPECT_EQ(batch_set("standard_prefill")->front(), "q512");
  EXPECT_NE(batch_set("nonsense").status().message().find("standard_attention"), std::string::npos);
}

}  // namespace
}  // namespace quire::cli
