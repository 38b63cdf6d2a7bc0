// Lists the project's own source files for the tests that read them.
#pragma once

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

namespace quire::meta {

struct SourceFile {
  std::string path;  // relative to the repository's root, with forward slashes
  std::vector<std::string> lines;
};

inline std::vector<std::string> read_lines(const std::filesystem::path& path) {
  std::vector<std::string> lines;
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

// Returns every source file under `folders`, in the order of their paths.
inline std::vector<SourceFile> read_source_tree(const std::filesystem::path& root,
                                                const std::vector<std::string>& folders) {
  static const std::set<std::string> kExtensions = {".h", ".hpp", ".c", ".cc", ".cu", ".cuh", ".py", ".sh", ".cmake"};
  std::vector<SourceFile> files;
  for (const std::string& folder : folders) {
    if (!std::filesystem::exists(root / folder)) continue;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(root / folder)) {
      const auto& path = entry.path();
      if (!entry.is_regular_file() || !kExtensions.contains(path.extension().string())) continue;
      files.push_back({path.lexically_relative(root).generic_string(), read_lines(path)});
    }
  }
  std::sort(files.begin(), files.end(), [](const auto& a, const auto& b) { return a.path < b.path; });
  return files;
}

inline const std::vector<std::string>& source_folders() {
  static const std::vector<std::string> kFolders = {"include", "src", "tests", "bench", "examples", "cmake", "python"};
  return kFolders;
}

}  // namespace quire::meta
