// Embedder: a bare BERT checkpoint, whose tokens are averaged and normalised.
#include <gtest/gtest.h>

#include <cmath>

#include "quire/engine.h"
#include "unit/models/parity.h"

namespace quire::parity {
namespace {

constexpr std::size_t kWidth = 48;

std::unique_ptr<Embedder> open_embedder(BatchInvariance invariance) {
  auto embedder =
      Embedder::create({.model = fixture("bert"), .max_num_batched_tokens = 128, .batch_invariance = invariance});
  EXPECT_TRUE(embedder.ok()) << embedder.status().to_string();
  return embedder.ok() ? std::move(*embedder) : nullptr;
}

TEST(Embedder, AveragesAndNormalisesTheHiddenStates) {
  const auto embedder = open_embedder(BatchInvariance::kOff);
  ASSERT_NE(embedder, nullptr);
  EXPECT_EQ(embedder->hidden_size(), 48);
  EXPECT_EQ(embedder->vocab_size(), 160);
  EXPECT_EQ(embedder->max_tokens(), 128);
  const SafetensorsFile expected = open_file(fixture("bert") + "/expected.safetensors");
  const std::vector<std::int32_t> ids = ids_of(expected, "input_ids_1");
  const Result<std::vector<float>> hidden = embedder->hidden_states(ids);
  ASSERT_TRUE(hidden.ok()) << hidden.status().to_string();
  EXPECT_LE(relative_error(*hidden, floats_of(expected, "hidden_1")), kTolerance);  // its only token has type 0
  const std::vector<std::vector<std::int32_t>> texts = {ids};
  const Result<std::vector<float>> vectors = embedder->embed(texts);
  ASSERT_TRUE(vectors.ok()) << vectors.status().to_string();
  double squares = 0.0;
  for (const float value : *hidden) squares += double{value} * value;
  std::vector<float> wanted = *hidden;
  for (float& value : wanted) value = static_cast<float>(value / std::sqrt(squares));
  EXPECT_LE(relative_error(*vectors, wanted), 1e-6f);
}

TEST(Embedder, BatchInvarianceGivesTheBitsOfALoneText) {
  const auto embedder = open_embedder(BatchInvariance::kOn);
  ASSERT_NE(embedder, nullptr);
  std::vector<std::vector<std::int32_t>> texts;
  const SafetensorsFile expected = open_file(fixture("bert") + "/expected.safetensors");
  for (const std::int32_t length : kLengths) texts.push_back(ids_of(expected, "input_ids_" + std::to_string(length)));
  const Result<std::vector<float>> together = embedder->embed(texts);
  ASSERT_TRUE(together.ok()) << together.status().to_string();
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const Result<std::vector<float>> alone = embedder->embed(std::span(texts).subspan(i, 1));
    ASSERT_TRUE(alone.ok()) << alone.status().to_string();
    for (std::size_t k = 0; k < kWidth; ++k) EXPECT_EQ((*alone)[k], (*together)[i * kWidth + k]) << "text " << i;
  }
}

TEST(Embedder, RefusesTextsThatItCannotTake) {
  const auto embedder = open_embedder(BatchInvariance::kOff);
  ASSERT_NE(embedder, nullptr);
  const auto embed = [&](const std::vector<std::int32_t>& text) { return embedder->embed({{text}}).ok(); };
  EXPECT_FALSE(embed({}));
  EXPECT_FALSE(embed(std::vector<std::int32_t>(129, 3)));
  EXPECT_FALSE(embed({160}));
  EXPECT_TRUE(embed({3, 4}));
  EXPECT_FALSE(Embedder::create({.model = fixture("bert"), .max_num_batched_tokens = 64}).ok());
  EXPECT_FALSE(Embedder::create({.model = fixture("llama")}).ok());
}

}  // namespace
}  // namespace quire::parity
