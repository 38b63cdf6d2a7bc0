// PagedImpl: attention of one layer on a paged cache (or, for encoders, on its own keys), whatever the backend.
#pragma once

#include "backends/layer_floats.h"
#include "backends/traits.h"
#include "quire/attention.h"
#include "quire/backend.h"

namespace quire::backends {

// Turns ImplConfig, ForwardArgs and metadata into AttentionArgs and calls paged_attention. A backend that adds
// something to the arguments overrides finish_args.
class PagedImpl : public AttentionImpl {
 public:
  // Checks the configuration against the traits.
  static Result<std::unique_ptr<AttentionImpl>> create(const BackendTraits& traits, const ImplConfig& config);

  Status do_kv_cache_update(const AttentionLayer& layer, const TensorView& key, const TensorView& value,
                            const TensorView& kv_cache, const TensorView& slot_mapping) const override;
  Status do_rope_and_kv_cache_update(const AttentionLayer& layer, const RopeArgs& rope, const TensorView& key,
                                     const TensorView& value, const TensorView& kv_cache,
                                     const TensorView& slot_mapping) const override;
  std::size_t workspace_bytes(const AttentionMetadata& metadata, OutputScales scales) const override;
  Status forward(const AttentionLayer& layer, const ForwardArgs& args) const override;

 protected:
  // The layer's arrays, where its kernels run.
  struct Arrays {
    LayerFloats alibi_slopes;
    LayerFloats sinks;
  };
  static Result<Arrays> place_arrays(const ImplConfig& config);
  PagedImpl(const BackendTraits& traits, const ImplConfig& config, Arrays arrays);
  virtual void finish_args(AttentionArgs&) const {}

 private:
  // Encoders attend over their own new keys; everyone else over the cache.
  bool reads_cache() const {
    return attn_type_ == AttentionType::kDecoder || attn_type_ == AttentionType::kEncoderDecoder;
  }
  bool stores_keys() const { return reads_cache() && !shares_kv_; }
  Status check_query_and_output(const ForwardArgs& args, std::int64_t num_tokens) const;
  Status check_device(std::string_view name, const TensorView& tensor) const;
  Status check_metadata(const AttentionMetadata& metadata) const;
  bool on_cuda() const { return runtime_.backplane == Backplane::kCuda; }
  Status fill_with_zeros(const TensorView& output) const;
  Result<KVSource> bind_cache(const AttentionLayer& layer, const TensorView& kv_cache) const;
  Status set_tensors(const AttentionLayer& layer, const ForwardArgs& forward, AttentionArgs& args) const;
  Result<KVSource> bind_own_keys(const ForwardArgs& args, const AttentionMetadata& metadata) const;
  AttentionArgs batch_args(const AttentionMetadata& metadata) const;

  AttentionType attn_type_;
  DType dtype_;
  std::int32_t num_heads_;
  KVCacheSpec spec_;  // num_blocks comes with each cache
  Arrays arrays_;
  Variant variant_;
  Runtime runtime_;
  bool shares_kv_;
};

}  // namespace quire::backends
