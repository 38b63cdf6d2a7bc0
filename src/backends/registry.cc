// The registry: the backends by name, built-in ones first. The list of backends is here.
#include <mutex>
#include <shared_mutex>
#include <string>
#include <vector>

#include "backends/traits.h"
#include "quire/backend.h"

namespace quire {
namespace {

// The name that older versions of vLLM give to XFORMERS.
constexpr std::string_view kXformersAlias = "XFORMERS_VLLM_V1";

class Registry {
 public:
  Registry() {
    add(backends::make_tree_attn());
    add(backends::make_xformers());
    add(backends::make_triton_attn());
    add(backends::make_triton_attn_diffkv());
    add(backends::make_differential_flash_attn());
  }

  void add(std::unique_ptr<AttentionBackend> backend) {
    const std::unique_lock lock(mutex_);
    const AttentionBackend* added = backend.get();
    owned_.push_back(std::move(backend));
    for (const AttentionBackend*& known : current_) {
      if (known->name() != added->name()) continue;
      known = added;
      return;
    }
    current_.push_back(added);
  }

  std::vector<const AttentionBackend*> all() const {
    const std::shared_lock lock(mutex_);
    return current_;
  }

 private:
  mutable std::shared_mutex mutex_;
  std::vector<std::unique_ptr<AttentionBackend>> owned_;  // replaced ones too: somebody may still use them
  std::vector<const AttentionBackend*> current_;
};

Registry& registry() {
  static Registry instance;
  return instance;
}

}  // namespace

std::vector<const AttentionBackend*> registered_backends() { return registry().all(); }

Result<const AttentionBackend*> find_backend(std::string_view name) {
  const std::string_view wanted = name == kXformersAlias ? "XFORMERS" : name;
  std::string names;
  for (const AttentionBackend* backend : registered_backends()) {
    if (backend->name() == wanted) return backend;
    names += (names.empty() ? "" : ", ") + std::string(backend->name());
  }
  return not_found("backend: want one of " + names + ", got '" + std::string(name) + "'");
}

Status register_backend(std::unique_ptr<AttentionBackend> backend) {
  if (backend == nullptr) return invalid_argument("backend: want a backend, got null");
  if (backend->name().empty()) return invalid_argument("backend.name: want a name, got an empty one");
  if (backend->name() == kXformersAlias) {
    return invalid_argument("backend.name: want another name, " + std::string(kXformersAlias) + " stands for XFORMERS");
  }
  registry().add(std::move(backend));
  return {};
}

}  // namespace quire
