// Implements the comparisons.
#include "unit/models/family_parity.h"

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "unit/models/parity.h"

namespace quire::parity {
namespace {

std::int32_t best_of(std::span<const float> logits) {
  return static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// Row t of `want` are the logits that ids[t] is chosen from.
void expect_rows(std::span<const float> got, std::span<const float> want, const std::vector<std::int32_t>& ids) {
  ASSERT_FALSE(ids.empty());
  ASSERT_EQ(got.size(), want.size());
  const std::size_t vocab = want.size() / ids.size();
  for (std::size_t t = 0; t < ids.size(); ++t) {
    const std::span<const float> row = got.subspan(t * vocab, vocab);
    EXPECT_LE(relative_error(row, want.subspan(t * vocab, vocab)), kTolerance) << "generated token " << t;
    EXPECT_EQ(best_of(row), ids[t]) << "generated token " << t;
  }
}

// The last row of the prompt's logits and those of all generated tokens but the last.
Result<std::vector<float>> decode(ModelRunner& runner, std::vector<float> prompt_logits, std::int32_t length,
                                  const std::vector<std::int32_t>& ids) {
  const auto vocab = static_cast<std::ptrdiff_t>(runner.info().vocab_size);
  std::vector<float> out(prompt_logits.end() - vocab, prompt_logits.end());
  QUIRE_ASSIGN_OR_RETURN(const std::vector<float> rest,
                         run_chunks(runner, std::span(ids).first(ids.size() - 1), length, 1));
  out.insert(out.end(), rest.begin(), rest.end());
  return out;
}

// The same for a decoder that starts with `start` and attends to `encoder_len` tokens in `cross_blocks`.
Result<std::vector<float>> decode_cross(ModelRunner& runner, std::span<const BlockId> cross_blocks,
                                        std::int32_t encoder_len, std::vector<std::int32_t> ids) {
  ids.insert(ids.begin(), 2);  // decoder_start_token_id
  ids.pop_back();
  const std::vector<BlockId> blocks = some_blocks(64);
  std::vector<float> out;
  for (std::size_t t = 0; t < ids.size(); ++t) {
    const SequenceRows rows{.tokens = std::span<const std::int32_t>(ids).subspan(t, 1),
                            .context_len = static_cast<std::int32_t>(t),
                            .blocks = blocks,
                            .cross_blocks = cross_blocks,
                            .cross_len = encoder_len};
    QUIRE_RETURN_IF_ERROR(runner.run({&rows, 1}));
    const std::span<const float> logits = runner.logits(0, 0);
    out.insert(out.end(), logits.begin(), logits.end());
  }
  return out;
}

}  // namespace

void expect_parity(const FamilyCase& one) {
  const auto runner = load_runner(fixture(one.fixture), {.backend = one.backend, .dtype = DType::kFloat32});
  ASSERT_TRUE(runner.ok()) << runner.status().to_string();
  if (!one.backend.empty()) {
    EXPECT_EQ((*runner)->model().attention().backend_name(), one.backend);
  }
  const SafetensorsFile expected = open_file(fixture(one.fixture) + "/expected.safetensors");
  for (const std::int32_t length : kLengths) {
    SCOPED_TRACE(one.fixture + " on " + one.backend + ", prompt of " + std::to_string(length));
    const std::string suffix = "_" + std::to_string(length);
    const std::vector<std::int32_t> prompt = ids_of(expected, "input_ids" + suffix);
    const Result<std::vector<float>> logits = run_chunks(**runner, prompt, 0, one.chunk);
    ASSERT_TRUE(logits.ok()) << logits.status().to_string();
    EXPECT_LE(relative_error(*logits, floats_of(expected, "logits" + suffix)), kTolerance);
    const std::vector<std::int32_t> ids = ids_of(expected, "gen_ids" + suffix);
    const Result<std::vector<float>> decoded = decode(**runner, *logits, length, ids);
    ASSERT_TRUE(decoded.ok()) << decoded.status().to_string();
    expect_rows(*decoded, floats_of(expected, "gen_logits" + suffix), ids);
  }
}

void expect_cross_parity(const FamilyCase& one) {
  const auto runner = load_runner(fixture(one.fixture), {.backend = one.backend, .dtype = DType::kFloat32});
  ASSERT_TRUE(runner.ok()) << runner.status().to_string();
  EXPECT_TRUE((*runner)->info().is_encoder_decoder);
  const SafetensorsFile expected = open_file(fixture(one.fixture) + "/expected.safetensors");
  const std::vector<BlockId> cross_blocks = {45, 41, 46, 43, 42};  // beside those of some_blocks
  for (const std::int32_t length : kLengths) {
    SCOPED_TRACE(one.fixture + ", encoder's prompt of " + std::to_string(length));
    const std::string suffix = "_" + std::to_string(length);
    const Status encoded = (*runner)->encode(ids_of(expected, "input_ids" + suffix), cross_blocks);
    ASSERT_TRUE(encoded.ok()) << encoded.to_string();
    const std::vector<std::int32_t> ids = ids_of(expected, "gen_ids" + suffix);
    const Result<std::vector<float>> decoded = decode_cross(**runner, cross_blocks, length, ids);
    ASSERT_TRUE(decoded.ok()) << decoded.status().to_string();
    expect_rows(*decoded, floats_of(expected, "gen_logits" + suffix), ids);
  }
}

std::string load_error(const FamilyCase& one) {
  return load_runner(fixture(one.fixture), {.backend = one.backend, .dtype = DType::kFloat32}).status().message();
}

namespace {

// ||got - want|| / ||want||: a largest error would tell of experts that rounding exchanged in one row.
float mean_error(std::span<const float> got, std::span<const float> want) {
  double error = 0.0;
  double scale = 0.0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    error += (double{got[i]} - want[i]) * (double{got[i]} - want[i]);
    scale += double{want[i]} * want[i];
  }
  return static_cast<float>(std::sqrt(error / scale));
}

}  // namespace

void expect_bfloat16(const std::string& name) {
  if (!has_bfloat16_linear()) GTEST_SKIP() << "bfloat16 linear layers want a processor with AVX-512";
  const auto runner = load_runner(fixture(name), {.dtype = DType::kBFloat16});
  ASSERT_TRUE(runner.ok()) << runner.status().to_string();
  EXPECT_EQ((*runner)->info().dtype, DType::kBFloat16);
  const SafetensorsFile expected = open_file(fixture(name) + "/expected.safetensors");
  for (const std::int32_t length : kLengths) {
    const std::string suffix = "_" + std::to_string(length);
    const Result<std::vector<float>> logits = run_chunks(**runner, ids_of(expected, "input_ids" + suffix), 0, 20);
    ASSERT_TRUE(logits.ok()) << logits.status().to_string();
    const std::span<const float> want = floats_of(expected, "logits" + suffix);
    ASSERT_EQ(logits->size(), want.size());
    EXPECT_LE(mean_error(*logits, want), 0.06f) << name << ", prompt of " << length;
  }
}

namespace fs = std::filesystem;

ChangedFixture::ChangedFixture(const std::string& name, const std::string& config) {
  const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
  const std::string own = "quire_" + name + "_" + test->test_suite_name() + "_" + test->name();
  const fs::path path = fs::path(::testing::TempDir()) / own;
  fs::create_directories(path);
  std::ofstream(path / "config.json") << config;
  fs::copy_file(fixture(name) + "/model.safetensors", path / "model.safetensors", fs::copy_options::overwrite_existing);
  folder_ = path.string();
}

ChangedFixture::~ChangedFixture() { fs::remove_all(folder_); }

std::string changed_load_error(const std::string& name, const std::string& key, const std::string& json) {
  std::ifstream in(fixture(name) + "/config.json");
  nlohmann::json config = nlohmann::json::parse(in);
  config[nlohmann::json::json_pointer("/" + key)] = nlohmann::json::parse(json);
  const ChangedFixture changed(name, config.dump());
  return load_runner(changed.folder(), {.dtype = DType::kFloat32}).status().message();
}

}  // namespace quire::parity
