// The selector: which backend runs a configuration, and why the others do not.
#include <algorithm>
#include <array>
#include <string>

#include "quire/backend.h"

namespace quire {
namespace {

// The automatic order; backends that are not named here follow as they were registered.
constexpr std::array<std::string_view, 4> kPreferred = {"TRITON_ATTN", "TRITON_ATTN_DIFFKV", "XFORMERS", "TREE_ATTN"};

std::ptrdiff_t rank_of(const AttentionBackend& backend) {
  return std::find(kPreferred.begin(), kPreferred.end(), backend.name()) - kPreferred.begin();
}

std::string explain(const BackendVerdict& verdict) {
  std::string text(verdict.backend->name());
  if (verdict.reasons.empty()) return text + ": is taken by name only";
  for (std::size_t i = 0; i < verdict.reasons.size(); ++i) text += (i == 0 ? ": " : "; ") + verdict.reasons[i];
  return text;
}

std::vector<BackendVerdict> judge_all(const AttentionConfig& config) {
  std::vector<BackendVerdict> verdicts;
  for (const AttentionBackend* backend : registered_backends()) {
    verdicts.push_back({backend, backend->validate_configuration(config)});
  }
  return verdicts;
}

const AttentionBackend* first_that_can(const std::vector<BackendVerdict>& verdicts) {
  const AttentionBackend* best = nullptr;
  for (const BackendVerdict& verdict : verdicts) {
    if (!verdict.reasons.empty() || !verdict.backend->is_automatic()) continue;
    if (best == nullptr || rank_of(*verdict.backend) < rank_of(*best)) best = verdict.backend;
  }
  return best;
}

}  // namespace

Result<BackendSelection> select_backend(const AttentionConfig& config, std::string_view name) {
  BackendSelection selection{.verdicts = judge_all(config)};
  if (name.empty()) {
    selection.backend = first_that_can(selection.verdicts);
    if (selection.backend != nullptr) return selection;
    std::string reasons;
    for (const BackendVerdict& verdict : selection.verdicts) reasons += "\n  " + explain(verdict);
    return unsupported("no backend can run the configuration:" + reasons);
  }
  QUIRE_ASSIGN_OR_RETURN(selection.backend, find_backend(name));
  const BackendVerdict named{selection.backend, selection.backend->validate_configuration(config)};
  if (!named.reasons.empty()) return unsupported(explain(named));
  return selection;
}

}  // namespace quire
