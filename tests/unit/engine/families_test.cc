// Every family through the engine: mixed batches, chunked prompts and batch invariance on the family's own backend.
#include "unit/engine/engine_support.h"
#include "unit/models/parity.h"

namespace quire::engine_test {
namespace {

class EveryFamily : public testing::TestWithParam<const char*> {};

// Prompts of 1, 7, 33 and 65 tokens together, at most 24 rows a step: chunks of long prompts run beside decodes.
struct Serving {
  std::int32_t budget = 24;
  std::int32_t max_num_seqs = 16;
  BatchInvariance invariance = BatchInvariance::kOff;
};

std::vector<Outcome> run_fixture(const std::string& name, const Serving& how) {
  const SafetensorsFile expected = parity::open_file(fixture(name) + "/expected.safetensors");
  const std::unique_ptr<Engine> engine = make_engine({.model = fixture(name),
                                                      .dtype = DType::kFloat32,
                                                      .max_num_seqs = how.max_num_seqs,
                                                      .max_num_batched_tokens = how.budget,
                                                      .batch_invariance = how.invariance});
  if (engine == nullptr) return {};
  std::vector<GenerateRequest> requests;
  for (const std::int32_t length : parity::kLengths) {
    requests.push_back(greedy_request(parity::ids_of(expected, "input_ids_" + std::to_string(length)), 12));
  }
  return run_all(*engine, std::move(requests));
}

void expect_tokens(const std::string& name, const std::vector<Outcome>& outcomes) {
  const SafetensorsFile expected = parity::open_file(fixture(name) + "/expected.safetensors");
  ASSERT_EQ(outcomes.size(), std::size(parity::kLengths));
  for (std::size_t i = 0; i < outcomes.size(); ++i) {
    const std::string length = std::to_string(parity::kLengths[i]);
    EXPECT_EQ(outcomes[i].tokens, parity::ids_of(expected, "gen_ids_" + length)) << "prompt of " << length;
  }
}

TEST_P(EveryFamily, GivesTheTokensOfTransformersInMixedBatches) {
  const std::string name = GetParam();
  expect_tokens(name, run_fixture(name, {}));
}

TEST_P(EveryFamily, BatchInvarianceGivesTheSameBitsInAnyBatch) {
  const std::string name = GetParam();
  const std::vector<Outcome> together = run_fixture(name, {.invariance = BatchInvariance::kOn});
  const std::vector<Outcome> alone =
      run_fixture(name, {.budget = 128, .max_num_seqs = 1, .invariance = BatchInvariance::kOn});
  expect_tokens(name, together);
  ASSERT_EQ(together.size(), alone.size());
  for (std::size_t i = 0; i < alone.size(); ++i) EXPECT_EQ(together[i].logits, alone[i].logits) << "request " << i;
}

INSTANTIATE_TEST_SUITE_P(Fixtures, EveryFamily,
                         testing::Values("gemma2", "gpt_oss", "bloom", "mpt", "deepseek_v2", "deepseek_v2_yarn",
                                         "diffllama", "bart"),
                         [](const auto& one) { return std::string(one.param); });

}  // namespace
}  // namespace quire::engine_test
