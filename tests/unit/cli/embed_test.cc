// Tests of `quire embed`: JSON lines, texts from options and files, and what it refuses.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/command.h"
#include "support/minilm.h"

namespace quire::test {
namespace {

struct Outcome {
  int status = -1;
  std::string out;
  std::string error;
};

Outcome embed(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {"quire", "embed"});
  std::vector<const char*> argv;
  for (const std::string& argument : arguments) argv.push_back(argument.c_str());
  ::testing::internal::CaptureStdout();
  ::testing::internal::CaptureStderr();
  Outcome outcome;
  outcome.status = cli::run_command_line(static_cast<int>(argv.size()), argv.data());
  outcome.out = ::testing::internal::GetCapturedStdout();
  outcome.error = ::testing::internal::GetCapturedStderr();
  return outcome;
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST(Embed, RefusesWhatItCannotDo) {
  EXPECT_EQ(embed({}).status, cli::kExitUsage);
  const Outcome no_text = embed({"--model", "no/such/folder"});
  EXPECT_EQ(no_text.status, cli::kExitFailure);
  EXPECT_TRUE(has(no_text.error, "--text")) << no_text.error;
  const Outcome no_model = embed({"--model", "no/such/folder", "--text", "a"});
  EXPECT_EQ(no_model.status, cli::kExitFailure);
  EXPECT_TRUE(has(no_model.error, "no/such/folder/config.json")) << no_model.error;
  EXPECT_TRUE(has(embed({"--model", "x", "--file", "no/such/file"}).error, "no/such/file"));
  EXPECT_TRUE(has(embed({"--model", "x", "--text", "a", "--dtype", "float7"}).error, "float7"));
}

TEST(Embed, PrintsAnObjectForEachText) {
  const std::string folder = minilm_folder();
  if (folder.empty()) GTEST_SKIP() << kNoMiniLm;
  const std::filesystem::path file = std::filesystem::path(::testing::TempDir()) / "quire_embed_lines.txt";
  std::ofstream(file) << "The girl is carrying a baby.\n\n";
  const Outcome outcome = embed({"--model", folder, "--text", "A man is eating \"food\".", "--file", file.string()});
  std::filesystem::remove(file);
  ASSERT_EQ(outcome.status, cli::kExitOk) << outcome.error;
  EXPECT_EQ(outcome.error, "");
  std::istringstream lines(outcome.out);
  const std::vector<std::pair<std::string, int>> wanted = {
      {"A man is eating \"food\".", 10}, {"The girl is carrying a baby.", 9}, {"", 2}};
  std::string line;
  for (const auto& [text, tokens] : wanted) {
    ASSERT_TRUE(std::getline(lines, line));
    const nlohmann::json object = nlohmann::json::parse(line);
    EXPECT_EQ(object["text"], text);
    EXPECT_EQ(object["tokens"], tokens);
    double squares = 0.0;
    for (const double value : object["embedding"]) squares += value * value;
    EXPECT_EQ(object["embedding"].size(), 384U);
    EXPECT_NEAR(squares, 1.0, 1e-5);
  }
  EXPECT_FALSE(std::getline(lines, line));
}

}  // namespace
}  // namespace quire::test
