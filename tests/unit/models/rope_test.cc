// Rotary tables: values by their formula, rows made when they are needed, and what a dynamic scaling is computed for.
#include "models/rope.h"

#include <gtest/gtest.h>

#include <cmath>

namespace quire {
namespace {

RopeTable table_of(const std::string& text, std::int64_t positions) {
  const auto config = HfConfig::parse(text, "config.json");
  auto table = make_rope_table(*config, {.head_size = 4, .num_positions = positions});
  EXPECT_TRUE(table.ok()) << table.status().to_string();
  return std::move(table).value();
}

// The angle of position 1, dimension 1: the frequency theta^(-1/2).
double frequency(RopeTable table) {
  table.cover(2);
  return std::atan2(table.cos_sin[7], table.cos_sin[5]);
}

TEST(RopeTable, HoldsCosinesAndSines) {
  RopeTable table = table_of(R"({"rope_theta": 100.0, "max_position_embeddings": 1000})", 1000);
  table.cover(1000);
  ASSERT_EQ(table.view().shape[0], 1000);
  for (const std::int64_t position : {0, 1, 17, 999}) {
    const float* row = table.cos_sin.data() + 4 * position;
    for (int i = 0; i < 2; ++i) {
      const double angle = static_cast<double>(position) * (i == 0 ? 1.0 : 0.1);
      EXPECT_NEAR(row[i], std::cos(angle), 1e-4);
      EXPECT_NEAR(row[2 + i], std::sin(angle), 1e-4);
    }
  }
}

// A configuration may allow a hundred million positions; only those that a step reaches are made.
TEST(RopeTable, MakesRowsWhenTheyAreNeeded) {
  const std::string text = R"({"max_position_embeddings": 33554432})";
  RopeTable table = table_of(text, 33554432);
  EXPECT_EQ(table.view().shape[0], 0);
  table.cover(3);
  EXPECT_GE(table.view().shape[0], 3);
  EXPECT_LE(table.view().shape[0], 4096);
  const std::vector<float> first = table.cos_sin;
  table.cover(5000);
  EXPECT_GE(table.view().shape[0], 5000);
  EXPECT_TRUE(std::equal(first.begin(), first.end(), table.cos_sin.begin()));
  RopeTable small = table_of(text, 10);
  small.cover(50);
  EXPECT_EQ(small.view().shape[0], 10);
}

// theta' = theta (factor L / original - factor + 1)^(d / (d - 2)) for the longest sequence L, as transformers computes
// it for a sequence of that length; up to the trained length nothing changes.
TEST(RopeTable, DynamicScalingIsMadeForTheLongestSequence) {
  const std::string text = R"({"rope_theta": 100.0, "max_position_embeddings": 64,
                               "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}})";
  EXPECT_NEAR(frequency(table_of(text, 64)), 0.1, 1e-6);
  EXPECT_NEAR(frequency(table_of(text, 32)), 0.1, 1e-6);
  EXPECT_NEAR(frequency(table_of(text, 128)), 1.0 / std::sqrt(100.0 * 25.0), 1e-6);
}

}  // namespace
}  // namespace quire
