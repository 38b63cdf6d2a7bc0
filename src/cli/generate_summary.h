// What a run of the engine comes to: speed, share of attention, use of the cache, acceptance of drafts.
#pragma once

#include <string>

#include "cli/table.h"
#include "quire/engine.h"

namespace quire::cli {

// Lines for a reader.
std::string summary_text(const EngineInfo& info, const EngineStats& stats);
// One row: backend, drafts, cache dtype, tokens, tokens/s, tokens a step, acceptance, cache bytes.
struct SummaryLabels {
  std::string name;
  std::string kv_cache_dtype;
};
Table summary_table(const SummaryLabels& labels, const EngineInfo& info, const EngineStats& stats);

}  // namespace quire::cli
