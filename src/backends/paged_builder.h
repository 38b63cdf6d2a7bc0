// PagedBuilder: from a batch to metadata, by the traits of a backend.
#pragma once

#include <memory>

#include "backends/traits.h"
#include "plan/device_arrays.h"
#include "quire/backend.h"

namespace quire::backends {

class PagedBuilder : public AttentionMetadataBuilder {
 public:
  static Result<std::unique_ptr<AttentionMetadataBuilder>> create(const BackendTraits& traits,
                                                                  const BuilderConfig& config);

  Result<AttentionMetadata> build(std::int32_t common_prefix_len, const CommonAttentionMetadata& common) override;
  Result<AttentionMetadata> build_for_cudagraph_capture(const CommonAttentionMetadata& common) override;
  Status update_for_cudagraph_replay(const AttentionMetadata& captured, const CommonAttentionMetadata& common) override;
  std::vector<std::pair<std::int32_t, std::int32_t>> reorder_batch(const ReorderInput& input) const override;
  std::int32_t reorder_batch_threshold() const override;

 protected:
  // The configuration has passed check_builder_config.
  PagedBuilder(const BackendTraits& traits, const BuilderConfig& config);
  const BuilderConfig& config() const { return config_; }
  // The options of an ordinary build, for backends that change some.
  Result<MetadataOptions> options() const;
  // Refuses what the backend does not take, then makes the metadata, on a device with its arrays there.
  Result<AttentionMetadata> make(const CommonAttentionMetadata& common, const MetadataOptions& options,
                                 ArrayUse use = ArrayUse::kOneStep) const;

 private:
  Status check_batch(const CommonAttentionMetadata& common) const;

  BackendTraits traits_;
  BuilderConfig config_;
  std::shared_ptr<DevicePool> pool_;  // null on the CPU
};

}  // namespace quire::backends
