// Replays one attention case through the public API and judges everything that the call may and may not write.
#pragma once

#include <optional>
#include <string>

#include "io/case_file.h"
#include "quire/kv_cache.h"
#include "quire/runtime.h"

namespace quire::cli {

// How a case is run. Layout and placement of the scales may differ from the file's: the answer must not.
struct ReplayOptions {
  Runtime runtime;
  std::optional<KVCacheLayout> layout;
  ScalePlacement scales = ScalePlacement::kInline;
};

// What became of a case.
struct ReplayVerdict {
  bool passed = false;
  double worst = 0.0;      // largest error / limit over the output
  double max_error = 0.0;  // largest absolute error
  std::string cache;       // "ok", "+-1" or "-" where the case has no cache to check
  std::string complaint;   // empty if passed
};

// Never fails as a call: errors of the library become the complaint.
ReplayVerdict replay_case(const AttentionCase& attention_case, const ReplayOptions& options);

}  // namespace quire::cli
