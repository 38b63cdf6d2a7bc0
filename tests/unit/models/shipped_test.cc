// The checkpoints under models/ against transformers: logits of a prompt and a greedy continuation.
#include "unit/models/parity.h"

namespace quire::parity {
namespace {

class Shipped : public testing::TestWithParam<const char*> {};

TEST_P(Shipped, WritesWhatTransformersWrites) {
  const std::string name = GetParam();
  const auto runner = load_runner(QUIRE_SOURCE_DIR "/models/" + name, {.dtype = DType::kFloat32});
  ASSERT_TRUE(runner.ok()) << runner.status().to_string();
  const SafetensorsFile expected = open_file(fixture("shipped/" + name + ".safetensors"));
  const std::vector<std::int32_t> prompt = ids_of(expected, "input_ids");
  const Result<std::vector<float>> logits = run_chunks(**runner, prompt, 0, 128);
  ASSERT_TRUE(logits.ok()) << logits.status().to_string();
  EXPECT_LE(relative_error(*logits, floats_of(expected, "logits")), kTolerance);

  std::vector<std::int32_t> ids = ids_of(expected, "gen_ids");
  ids.pop_back();
  const auto length = static_cast<std::int32_t>(prompt.size());
  const Result<std::vector<float>> decoded = run_chunks(**runner, ids, length, 1);
  ASSERT_TRUE(decoded.ok()) << decoded.status().to_string();
  const std::span<const float> want = floats_of(expected, "gen_logits");
  const auto vocab = static_cast<std::size_t>((*runner)->info().vocab_size);
  // Row 0 of the expected logits is the prompt's last.
  const std::span<const float> first = std::span(*decoded).first(want.size() - vocab);
  EXPECT_LE(relative_error(first, want.subspan(vocab)), kTolerance);
  for (std::size_t t = 0; t + 1 < ids.size(); ++t) {
    const auto row = decoded->begin() + static_cast<std::ptrdiff_t>(t * vocab);
    EXPECT_EQ(std::max_element(row, row + static_cast<std::ptrdiff_t>(vocab)) - row, ids[t + 1]) << "token " << t + 1;
  }
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, Shipped,
                         testing::Values("shakespeare-llama", "shakespeare-draft", "shakespeare-diff"),
                         [](const auto& one) {
                           std::string name = one.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace quire::parity
