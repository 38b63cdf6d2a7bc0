// BERT against transformers: encoder-only attention over batches, token types and the pooler.
#include "models/bert.h"

#include <gtest/gtest.h>

#include <array>
#include <vector>

#include "unit/models/parity.h"

namespace quire::parity {
namespace {

class Bert : public ::testing::Test {
 protected:
  void SetUp() override {
    Result<Checkpoint> checkpoint = Checkpoint::open(fixture("bert"));
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
    checkpoint_ = std::make_unique<Checkpoint>(std::move(*checkpoint));
    const Result<Runtime> runtime = default_runtime();
    ASSERT_TRUE(runtime.ok()) << runtime.status().message();
    Result<std::unique_ptr<BertEncoder>> bert =
        BertEncoder::load(*checkpoint_, {.dtype = DType::kFloat32, .max_tokens = 128, .runtime = *runtime});
    ASSERT_TRUE(bert.ok()) << bert.status().message();
    bert_ = std::move(*bert);
  }

  const SafetensorsFile expected_ = open_file(fixture("bert") + "/expected.safetensors");
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<BertEncoder> bert_;
};

TEST_F(Bert, MatchesTransformers) {
  for (const std::int32_t length : kLengths) {
    SCOPED_TRACE("length " + std::to_string(length));
    const std::string suffix = "_" + std::to_string(length);
    const std::vector<std::int32_t> ids = ids_of(expected_, "input_ids" + suffix);
    const std::vector<std::int32_t> types = ids_of(expected_, "token_type_ids" + suffix);
    const std::array starts = {0, length};
    const auto hidden = bert_->forward({.tokens = ids, .token_types = types, .starts = starts});
    ASSERT_TRUE(hidden.ok()) << hidden.status().message();
    EXPECT_LE(relative_error(*hidden, floats_of(expected_, "hidden" + suffix)), kTolerance);
    std::vector<float> pooled(48);
    const Status status = bert_->pool(starts, pooled);
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_LE(relative_error(pooled, floats_of(expected_, "pooled" + suffix)), kTolerance);
  }
}

TEST_F(Bert, MatchesTransformersInABatch) {
  std::vector<std::int32_t> ids;
  std::vector<std::int32_t> types;
  std::vector<std::int32_t> starts = {0};
  std::vector<float> wanted;
  std::vector<float> wanted_pooled;
  for (const std::int32_t length : kLengths) {
    const std::string suffix = "_" + std::to_string(length);
    for (const std::int32_t id : ids_of(expected_, "input_ids" + suffix)) ids.push_back(id);
    for (const std::int32_t type : ids_of(expected_, "token_type_ids" + suffix)) types.push_back(type);
    for (const float value : floats_of(expected_, "hidden" + suffix)) wanted.push_back(value);
    for (const float value : floats_of(expected_, "pooled" + suffix)) wanted_pooled.push_back(value);
    starts.push_back(static_cast<std::int32_t>(ids.size()));
  }
  const auto hidden = bert_->forward({.tokens = ids, .token_types = types, .starts = starts});
  ASSERT_TRUE(hidden.ok()) << hidden.status().message();
  EXPECT_LE(relative_error(*hidden, wanted), kTolerance);
  std::vector<float> pooled(std::size(kLengths) * 48);
  const Status status = bert_->pool(starts, pooled);
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_LE(relative_error(pooled, wanted_pooled), kTolerance);
}

TEST_F(Bert, RefusesBadBatches) {
  const std::vector<std::int32_t> ids(129, 3);
  const auto run = [&](std::vector<std::int32_t> starts, std::span<const std::int32_t> tokens) {
    return bert_->forward({.tokens = tokens, .starts = starts}).status();
  };
  const std::span<const std::int32_t> all(ids);
  EXPECT_FALSE(run({0, 129}, all).ok());
  EXPECT_FALSE(run({0, 5}, all.first(4)).ok());
  EXPECT_FALSE(run({0, 3, 2, 4}, all.first(4)).ok());
  EXPECT_FALSE(run({0, 0, 4}, all.first(4)).ok());
  EXPECT_FALSE(run({0, 2}, std::vector<std::int32_t>{3, -1}).ok());
  EXPECT_FALSE(run({0, 2}, std::vector<std::int32_t>{3, 160}).ok());
  EXPECT_TRUE(run({0, 4}, all.first(4)).ok());
}

}  // namespace
}  // namespace quire::parity
