// The tokenizer against what the tokenizers package did with the same files and strings, and against broken files.
#include "io/tokenizer/tokenizer.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "io/tokenizer/unicode.h"

namespace quire {
namespace {

using nlohmann::json;

const std::string kFixtures = QUIRE_SOURCE_DIR "/tests/fixtures/tokenizers/";

std::vector<json> read_lines(const std::string& path) {
  std::ifstream file(path);
  std::vector<json> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(json::parse(line));
  return lines;
}

Tokenizer load(const std::string& name) {
  auto tokenizer = Tokenizer::load(kFixtures + name + "/tokenizer.json");
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status().to_string();
  return std::move(tokenizer).value();
}

class TokenizerParity : public ::testing::TestWithParam<const char*> {};

TEST_P(TokenizerParity, EncodesAndDecodesAsTheTokenizersPackage) {
  const Tokenizer tokenizer = load(GetParam());
  const auto strings = read_lines(kFixtures + "strings.jsonl");
  const auto expected = read_lines(kFixtures + GetParam() + "/expected.jsonl");
  ASSERT_GE(strings.size(), 5000u);
  ASSERT_EQ(strings.size(), expected.size());
  int failures = 0;
  for (std::size_t i = 0; i < strings.size() && failures < 5; ++i) {
    const auto text = strings[i].get<std::string>();
    const auto want = expected[i]["ids"].get<std::vector<std::int32_t>>();
    const auto ids = tokenizer.encode(text);
    ASSERT_TRUE(ids.ok()) << ids.status().to_string();
    EXPECT_EQ(*ids, want) << "line " << i + 1 << ": " << strings[i].dump();
    failures += *ids != want;
    if (tokenizer.token_to_id("[CLS]")) continue;  // WordPiece cannot give its text back
    const auto decoded = tokenizer.decode(want);
    ASSERT_TRUE(decoded.ok()) << decoded.status().to_string();
    EXPECT_EQ(*decoded, expected[i].value("decoded", text)) << "line " << i + 1;
    failures += *decoded != expected[i].value("decoded", text);
  }
}

TEST_P(TokenizerParity, DecodesRandomIds) {
  const Tokenizer tokenizer = load(GetParam());
  for (const json& line : read_lines(kFixtures + GetParam() + "/decode.jsonl")) {
    const auto ids = line["ids"].get<std::vector<std::int32_t>>();
    const auto text = tokenizer.decode(ids);
    ASSERT_TRUE(text.ok()) << text.status().to_string();
    EXPECT_EQ(*text, line["decoded"].get<std::string>()) << line["ids"].dump();
  }
}

TEST_P(TokenizerParity, StreamGivesTheWholeText) {
  const Tokenizer tokenizer = load(GetParam());
  for (const json& line : read_lines(kFixtures + "strings.jsonl")) {
    const auto text = line.get<std::string>();
    if (text.size() > 60) continue;
    const auto ids = tokenizer.encode(text);
    ASSERT_TRUE(ids.ok());
    StreamDecoder stream(tokenizer);
    std::string streamed;
    for (const std::int32_t id : *ids) streamed += stream.add(id).value();
    streamed += stream.finish().value();
    if (streamed != tokenizer.decode(*ids).value()) {
      ADD_FAILURE() << line.dump() << " streamed as " << streamed;
      return;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Files, TokenizerParity, ::testing::Values("gpt2", "llama3", "qwen", "bert"),
                         [](const auto& tested) { return std::string(tested.param); });

TEST(Unicode, ReplacesEachMaximalInvalidPart) {
  EXPECT_EQ(tokenizer::to_valid_utf8("a\xe2\x82z"), "a\xef\xbf\xbdz");
  EXPECT_EQ(tokenizer::to_valid_utf8("\xc0\xaf"), "\xef\xbf\xbd\xef\xbf\xbd");
  EXPECT_EQ(tokenizer::to_valid_utf8("\xed\xa0\x80"), "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd");
}

std::string error_of(const std::string& text) {
  const auto tokenizer = Tokenizer::parse(text, "file.json");
  return tokenizer.ok() ? "" : tokenizer.status().to_string();
}

json small_file() {
  return {{"model", {{"type", "BPE"}, {"vocab", {{"a", 0}, {"b", 1}, {"ab", 2}}}, {"merges", {"a b"}}}}};
}

TEST(TokenizerErrors, NameFileAndKey) {
  EXPECT_EQ(error_of(small_file().dump()), "");
  EXPECT_NE(error_of("{").find("file.json: want JSON, got malformed text"), std::string::npos);
  EXPECT_NE(error_of("{}").find("file.json: model"), std::string::npos);
  json file = small_file();
  file["model"]["type"] = "Unigram";
  EXPECT_NE(error_of(file.dump()).find("file.json: model.type: want BPE or WordPiece, got 'Unigram'"),
            std::string::npos);
  file = small_file();
  file["model"]["merges"] = {"a c"};
  EXPECT_NE(error_of(file.dump()).find("model.merges[0]"), std::string::npos);
  file = small_file();
  file["model"]["vocab"]["a"] = -3;
  EXPECT_NE(error_of(file.dump()).find("model.vocab['a']"), std::string::npos);
  file = small_file();
  file["pre_tokenizer"] = {{"type", "Split"}, {"pattern", {{"Regex", "(("}}}, {"behavior", "Isolated"}};
  EXPECT_NE(error_of(file.dump()).find("pre_tokenizer.pattern: want a regular expression"), std::string::npos);
  file["pre_tokenizer"] = {{"type", "Mystery"}};
  EXPECT_NE(error_of(file.dump()).find("pre_tokenizer.type"), std::string::npos);
  file = small_file();
  file["decoder"] = {{"type", "Mystery"}};
  EXPECT_NE(error_of(file.dump()).find("decoder.type"), std::string::npos);
  EXPECT_NE(error_of(std::string(100000, '[')).find("file.json"), std::string::npos);
}

// Steps that double a text over and over would take any memory from a file of a few hundred bytes.
TEST(TokenizerErrors, RefusesPartsThatGrowTextsWithoutBound) {
  const json doubling = {{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", "aa"}};
  const json bytes = {{"type", "ByteLevel"}};
  const struct {
    const char* part;
    const char* list;
    json step;
  } cases[] = {{"normalizer", "normalizers", doubling},
               {"pre_tokenizer", "pretokenizers", bytes},
               {"decoder", "decoders", doubling}};
  for (const auto& one : cases) {
    json file = small_file();
    file[one.part] = {{"type", "Sequence"}, {one.list, json(10, one.step)}};
    EXPECT_EQ(error_of(file.dump()), "") << one.part;
    file[one.part][one.list] = json(40, one.step);
    EXPECT_NE(error_of(file.dump()).find("want parts that make a text at most 1024 times longer"), std::string::npos)
        << error_of(file.dump());
  }
}

// \C would cut characters into bytes.
TEST(TokenizerErrors, RefusesPatternsThatMatchBytes) {
  json file = small_file();
  file["pre_tokenizer"] = {{"type", "Split"}, {"pattern", {{"Regex", "\\C"}}}, {"behavior", "Isolated"}};
  EXPECT_NE(error_of(file.dump()).find("pre_tokenizer.pattern: want a regular expression"), std::string::npos);
}

TEST(Tokenizer, WordPieceTakesTheLongestEntryOfLongWords) {
  const json file = {{"model",
                      {{"type", "WordPiece"},
                       {"unk_token", "?"},
                       {"max_input_chars_per_word", 10000},
                       {"vocab", {{"?", 0}, {"a", 1}, {"##a", 2}, {"##aaa", 3}}}}}};
  const auto tokenizer = Tokenizer::parse(file.dump(), "file.json");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().to_string();
  EXPECT_EQ(tokenizer->encode("aaaaaa").value(), (std::vector<std::int32_t>{1, 3, 2, 2}));
  EXPECT_EQ(tokenizer->encode(std::string(9999, 'a'))->size(), 1u + 9998 / 3 + 9998 % 3);
}

TEST(TokenizerErrors, RejectsIdsWithoutToken) {
  const auto tokenizer = Tokenizer::parse(small_file().dump(), "file.json");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().to_string();
  const std::vector<std::int32_t> ids{2, 9};
  const auto text = tokenizer->decode(ids);
  ASSERT_FALSE(text.ok());
  EXPECT_NE(text.status().message().find("got 9"), std::string::npos);
}

}  // namespace
}  // namespace quire
