// Registering a backend of one's own, choosing it by name, and reading why a backend cannot run a configuration.
#include <quire/quire.h>

#include <cstdio>
#include <string>

namespace {

// TRITON_ATTN for models with at most 128 elements a head; everything else is passed on.
class SmallHeads final : public quire::AttentionBackend {
 public:
  explicit SmallHeads(const quire::AttentionBackend& base) : base_(base) {}

  std::string_view name() const override { return "SMALL_HEADS"; }
  std::string_view summary() const override { return "TRITON_ATTN for head sizes up to 128."; }
  std::span<const quire::DType> supported_dtypes() const override { return base_.supported_dtypes(); }
  std::span<const quire::KVCacheDType> supported_kv_cache_dtypes() const override {
    return base_.supported_kv_cache_dtypes();
  }
  bool supports_head_size(std::int32_t head_size, std::int32_t head_size_v) const override {
    return head_size <= 128 && base_.supports_head_size(head_size, head_size_v);
  }
  bool supports_block_size(std::int32_t block_size) const override { return base_.supports_block_size(block_size); }
  std::int32_t block_size_multiple() const override { return base_.block_size_multiple(); }
  bool supports_attn_type(quire::AttentionType type) const override { return base_.supports_attn_type(type); }
  bool supports_sink() const override { return base_.supports_sink(); }
  bool supports_mm_prefix() const override { return base_.supports_mm_prefix(); }
  bool supports_alibi_sqrt() const override { return base_.supports_alibi_sqrt(); }
  bool supports_non_causal() const override { return base_.supports_non_causal(); }
  bool supports_output_quant() const override { return base_.supports_output_quant(); }
  bool is_automatic() const override { return false; }  // chosen by name only
  bool supports_backplane(quire::Backplane backplane) const override { return base_.supports_backplane(backplane); }
  bool supports_compute_capability(quire::ComputeCapability capability) const override {
    return base_.supports_compute_capability(capability);
  }
  quire::CudagraphSupport cudagraph_support() const override { return base_.cudagraph_support(); }
  quire::KVCacheFormat kv_cache_format() const override { return base_.kv_cache_format(); }
  quire::Result<std::unique_ptr<quire::AttentionImpl>> make_impl(const quire::ImplConfig& config) const override {
    return base_.make_impl(config);
  }
  quire::Result<std::unique_ptr<quire::AttentionMetadataBuilder>> make_builder(
      const quire::BuilderConfig& config) const override {
    return base_.make_builder(config);
  }

 private:
  const quire::AttentionBackend& base_;
};

}  // namespace

int main() {
  const auto base = quire::find_backend("TRITON_ATTN");
  if (!base.ok()) return 1;
  if (!quire::register_backend(std::make_unique<SmallHeads>(**base)).ok()) return 1;

  quire::AttentionConfig config;
  config.head_size = 128;
  const auto taken = quire::select_backend(config, "SMALL_HEADS");
  if (!taken.ok()) return 1;
  std::printf("head size 128: %s\n", std::string(taken->backend->name()).c_str());

  config.head_size = 256;
  const auto refused = quire::select_backend(config, "SMALL_HEADS");
  std::printf("head size 256: %s\n", refused.status().to_string().c_str());
  return refused.ok() ? 1 : 0;
}
