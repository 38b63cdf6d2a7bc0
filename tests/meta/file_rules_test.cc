// Checks what the house rules ask of every source file: its length, its opening comment, no markers of open work.
#include <gtest/gtest.h>

#include <regex>

#include "meta/source_tree.h"

namespace quire::meta {
namespace {

constexpr std::size_t kMaxLines = 500;

const std::vector<SourceFile>& files() {
  static const std::vector<SourceFile> kFiles = read_source_tree(QUIRE_SOURCE_DIR, source_folders());
  return kFiles;
}

TEST(FileRules, NoFileIsLongerThanTheLimit) {
  ASSERT_FALSE(files().empty());
  for (const SourceFile& file : files()) EXPECT_LE(file.lines.size(), kMaxLines) << file.path;
}

TEST(FileRules, EveryFileOpensWithAComment) {
  static const std::regex kComment(R"(^(//|/\*|#|\"\"\"))");
  for (const SourceFile& file : files()) {
    ASSERT_FALSE(file.lines.empty()) << file.path;
    EXPECT_TRUE(std::regex_search(file.lines.front(), kComment)) << file.path << ": " << file.lines.front();
  }
}

TEST(FileRules, NoMarkersOfOpenWork) {
  static const std::regex kMarker(std::string("\\b(TO") + "DO|FIX" + "ME|HA" + "CK)\\b");
  for (const SourceFile& file : files()) {
    for (const std::string& line : file.lines)
      EXPECT_FALSE(std::regex_search(line, kMarker)) << file.path << ": " << line;
  }
}

// The library reports errors as values; only the command may print or exit.
TEST(FileRules, TheLibraryNeitherPrintsNorExits) {
  static const std::regex kForbidden(R"(std::(cout|cerr|abort|exit|terminate)\b|\b(fprintf|printf|abort|exit) *\()");
  for (const SourceFile& file : files()) {
    const bool library = file.path.starts_with("include/") || file.path.starts_with("src/");
    if (!library || file.path.starts_with("src/cli/")) continue;
    for (const std::string& line : file.lines) {
      const std::string code = line.substr(0, line.find("//"));
      EXPECT_FALSE(std::regex_search(code, kForbidden)) << file.path << ": " << line;
    }
  }
}

// c_api.h is the other way in, for C.
TEST(FileRules, TheUmbrellaIncludesEveryPublicHeader) {
  const std::filesystem::path folder = std::filesystem::path(QUIRE_SOURCE_DIR) / "include/quire";
  const std::vector<std::string> umbrella = read_lines(folder / "quire.h");
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name == "quire.h" || name == "c_api.h") continue;
    const std::string line = "#include \"quire/" + name + "\"";
    EXPECT_NE(std::find(umbrella.begin(), umbrella.end(), line), umbrella.end()) << "quire.h lacks " << line;
  }
}

}  // namespace
}  // namespace quire::meta
