// Reads all #include lines and fails on one that points upwards or sideways in the project's layers.
#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <regex>

#include "meta/source_tree.h"

namespace quire::meta {
namespace {

// The public headers are layer -1: everyone may include them. A file may include its own folder and lower layers.
constexpr int kPublicLayer = -1;
constexpr int kTopLayer = 6;

const std::map<std::string, int>& layers() {
  static const std::map<std::string, int> kLayers = {
      {"core", 0}, {"variant", 1}, {"kv", 1},       {"io", 1},     {"reference", 2}, {"cpu", 2},
      {"cuda", 2}, {"plan", 2},    {"backends", 3}, {"models", 4}, {"engine", 5},    {"cli", kTopLayer}};
  return kLayers;
}

struct Place {
  std::string folder;
  int layer = kTopLayer;
};

// Where a path of the repository stands; nothing when it is in a folder of src/ that has no layer.
std::optional<Place> place_of(const std::string& path) {
  const std::filesystem::path parts(path);
  auto part = parts.begin();
  if (*part == "include") return Place{"include", kPublicLayer};
  if (*part != "src") return Place{part->string(), kTopLayer};
  const std::string folder = (++part)->string();
  const auto found = layers().find(folder);
  if (found == layers().end()) return std::nullopt;
  return Place{folder, found->second};
}

// The repository path that an include of `from` names; empty for a header that is not ours.
std::string resolve(const std::string& from, const std::string& target, bool quoted) {
  if (target.starts_with("quire/")) return "include/" + target;
  if (!quoted) return "";
  const std::string first = target.substr(0, target.find('/'));
  if (layers().contains(first)) return "src/" + target;
  if (from.starts_with("tests/") && first != target && first != "..") return "tests/" + target;
  return (std::filesystem::path(from).parent_path() / target).lexically_normal().generic_string();
}

// Says what is wrong with one include line; empty when it is allowed.
std::string complaint(const std::string& from, const std::string& target, bool quoted) {
  const std::string to = resolve(from, target, quoted);
  const std::optional<Place> source = place_of(from);
  if (!source) return from + ": its folder has no layer in tests/meta/layering_test.cc";
  if (to.empty()) {
    const bool cuda = target.find("cuda") != std::string::npos;
    return source->layer == kPublicLayer && cuda ? from + ": public headers include no CUDA header: " + target : "";
  }
  const std::optional<Place> wanted = place_of(to);
  if (!wanted) return from + ": includes " + to + ", whose folder has no layer";
  if (from.starts_with("examples/") && wanted->layer != kPublicLayer && wanted->folder != "examples") {
    return from + ": examples include public headers only, got " + to;
  }
  if (wanted->folder == source->folder || wanted->layer < source->layer) return "";
  if (source->layer == kTopLayer && !from.starts_with("src/")) return "";
  return from + ": " + source->folder + " may not include " + wanted->folder + " (" + to + ")";
}

TEST(Layering, RulesRejectUpwardAndSidewaysIncludes) {
  EXPECT_NE(complaint("src/core/a.cc", "kv/b.h", true), "");
  EXPECT_NE(complaint("src/kv/a.cc", "variant/b.h", true), "");
  EXPECT_NE(complaint("src/cpu/a.cc", "../backends/b.h", true), "");
  EXPECT_NE(complaint("src/new_folder/a.cc", "core/b.h", true), "");
  EXPECT_NE(complaint("include/quire/a.h", "core/b.h", true), "");
  EXPECT_NE(complaint("include/quire/a.h", "cuda_runtime.h", false), "");
  EXPECT_NE(complaint("examples/a.cc", "core/b.h", true), "");
}

TEST(Layering, RulesAcceptDownwardIncludes) {
  EXPECT_EQ(complaint("src/cpu/a.cc", "variant/terms/b.h", true), "");
  EXPECT_EQ(complaint("src/cpu/isa/a.cc", "../kernel/b.h", true), "");
  EXPECT_EQ(complaint("src/core/a.cc", "quire/status.h", true), "");
  EXPECT_EQ(complaint("src/cli/a.cc", "engine/b.h", true), "");
  EXPECT_EQ(complaint("tests/unit/a.cc", "backends/b.h", true), "");
  EXPECT_EQ(complaint("src/core/a.cc", "vector", false), "");
}

TEST(Layering, IncludesPointDownwards) {
  static const std::regex kInclude(R"(^\s*#\s*include\s*([<"])([^>"]+)[>"])");
  const std::filesystem::path root(QUIRE_SOURCE_DIR);
  int includes = 0;
  for (const SourceFile& file : read_source_tree(root, {"include", "src", "tests", "bench", "examples", "python"})) {
    for (const std::string& line : file.lines) {
      std::smatch match;
      if (!std::regex_search(line, match, kInclude)) continue;
      ++includes;
      const bool quoted = match[1].str() == "\"";
      EXPECT_EQ(complaint(file.path, match[2].str(), quoted), "");
      const std::string to = resolve(file.path, match[2].str(), quoted);
      EXPECT_TRUE(to.empty() || std::filesystem::exists(root / to)) << file.path << " includes " << to << ", not there";
    }
  }
  EXPECT_GT(includes, 0);
}

}  // namespace
}  // namespace quire::meta
