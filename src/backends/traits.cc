// BuiltinBackend: the answers that follow from a backend's traits.
#include "backends/traits.h"

#include "backends/paged_builder.h"
#include "backends/paged_impl.h"
#include "quire/ops.h"

namespace quire::backends {

std::span<const std::string_view> family_features() {
  static constexpr std::array<std::string_view, 8> kFeatures = {
      "ALiBi",      "chunked local attention", "fp8 queries",    "grouped queries",
      "KV sharing", "log-sum-exp output",      "sliding window", "softcap"};
  return kFeatures;
}

bool BuiltinBackend::supports_head_size(std::int32_t head_size, std::int32_t head_size_v) const {
  const bool own_value_width = traits_.format == KVCacheFormat::kPackedKV;
  return head_size >= kMinHeadSize && head_size_v >= kMinHeadSize && (own_value_width || head_size == head_size_v);
}

bool BuiltinBackend::supports_block_size(std::int32_t block_size) const {
  return block_size > 0 && block_size % kBlockSizeMultiple == 0;
}

bool BuiltinBackend::supports_backplane(Backplane backplane) const {
  return backplane == Backplane::kReference || backplane == Backplane::kCpu || backplane == Backplane::kCuda;
}

bool BuiltinBackend::supports_compute_capability(ComputeCapability capability) const {
  return capability.major > kMinComputeCapability.major ||
         (capability.major == kMinComputeCapability.major && capability.minor >= kMinComputeCapability.minor);
}

Result<std::unique_ptr<AttentionImpl>> BuiltinBackend::make_impl(const ImplConfig& config) const {
  return PagedImpl::create(traits_, config);
}

Result<std::unique_ptr<AttentionMetadataBuilder>> BuiltinBackend::make_builder(const BuilderConfig& config) const {
  return PagedBuilder::create(traits_, config);
}

}  // namespace quire::backends
