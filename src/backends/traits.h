// What a built-in backend is, as data, and the AttentionBackend that answers every question from it.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "plan/make_metadata.h"
#include "quire/backend.h"

namespace quire::backends {

inline constexpr std::array<DType, 3> kAllActivations = {DType::kFloat16, DType::kBFloat16, DType::kFloat32};
inline constexpr std::int32_t kMinHeadSize = 8;
inline constexpr std::int32_t kBlockSizeMultiple = 16;
inline constexpr ComputeCapability kMinComputeCapability = {8, 0};

// Sets of attention types, by bit.
constexpr std::uint32_t type_bit(AttentionType type) { return 1u << static_cast<std::uint32_t>(type); }
inline constexpr std::uint32_t kDecoderOnly = type_bit(AttentionType::kDecoder);
inline constexpr std::uint32_t kAllTypes = kDecoderOnly | type_bit(AttentionType::kEncoder) |
                                           type_bit(AttentionType::kEncoderOnly) |
                                           type_bit(AttentionType::kEncoderDecoder);

// The dimension of a cache's logical shape that counts blocks.
constexpr int kv_block_dim(KVCacheFormat format) {
  switch (format) {
    case KVCacheFormat::kKVFirst:
      return 1;
    case KVCacheFormat::kBlockFirst:
    case KVCacheFormat::kPackedKV:
      return 0;
    case KVCacheFormat::kDifferential:
      return 2;
  }
  return 0;
}

// Where the length comes from up to which a request counts as a decode.
enum class DecodeThreshold : std::uint8_t { kNone, kOne, kTreeSize, kSpeculative };
// What a builder does with a common prefix that it is told of.
enum class CommonPrefix : std::uint8_t { kIgnored, kRefused };

// The shared features of the family, in the words of AttentionBackend::features.
std::span<const std::string_view> family_features();

struct BackendTraits {
  std::string_view name;
  std::string_view summary;
  std::span<const std::string_view> notes = {};
  KVCacheFormat format = KVCacheFormat::kBlockFirst;
  std::uint32_t attn_types = kDecoderOnly;
  bool sinks = false;
  bool mm_prefix = false;
  bool alibi_sqrt = false;
  bool non_causal = false;
  bool trees = false;
  bool automatic = true;
  CudagraphSupport cudagraph = CudagraphSupport::kNever;
  LengthUse capture_lengths = LengthUse::kActual;
  BatchOrder order = BatchOrder::kUnsplit;  // what build insists on
  std::optional<ReorderForm> reorder = {};  // what reorder_batch sorts into
  DecodeThreshold threshold = DecodeThreshold::kNone;
  std::string_view batch_order = "any";  // the two in words
  CommonPrefix common_prefix = CommonPrefix::kIgnored;
};

// A built-in backend: everything follows from its traits, but for the two factories where a backend has more to do.
class BuiltinBackend : public AttentionBackend {
 public:
  explicit BuiltinBackend(const BackendTraits& traits) : traits_(traits) {}

  std::string_view name() const override { return traits_.name; }
  std::string_view summary() const override { return traits_.summary; }
  std::span<const std::string_view> features() const override { return family_features(); }
  std::span<const std::string_view> notes() const override { return traits_.notes; }
  std::span<const DType> supported_dtypes() const override { return kAllActivations; }
  std::span<const KVCacheDType> supported_kv_cache_dtypes() const override { return all_kv_cache_dtypes(); }
  bool supports_head_size(std::int32_t head_size, std::int32_t head_size_v) const override;
  bool supports_block_size(std::int32_t block_size) const override;
  std::int32_t block_size_multiple() const override { return kBlockSizeMultiple; }
  bool supports_attn_type(AttentionType type) const override { return (traits_.attn_types & type_bit(type)) != 0; }
  bool supports_sink() const override { return traits_.sinks; }
  bool supports_mm_prefix() const override { return traits_.mm_prefix; }
  bool supports_alibi_sqrt() const override { return traits_.alibi_sqrt; }
  bool supports_non_causal() const override { return traits_.non_causal; }
  bool supports_output_quant() const override { return true; }
  bool is_automatic() const override { return traits_.automatic; }
  bool supports_backplane(Backplane backplane) const override;
  bool supports_compute_capability(ComputeCapability capability) const override;
  CudagraphSupport cudagraph_support() const override { return traits_.cudagraph; }
  KVCacheFormat kv_cache_format() const override { return traits_.format; }
  std::string_view batch_order() const override { return traits_.batch_order; }
  Result<std::unique_ptr<AttentionImpl>> make_impl(const ImplConfig& config) const override;
  Result<std::unique_ptr<AttentionMetadataBuilder>> make_builder(const BuilderConfig& config) const override;

 protected:
  const BackendTraits& traits() const { return traits_; }

 private:
  BackendTraits traits_;
};

// The five, one a file.
std::unique_ptr<AttentionBackend> make_tree_attn();
std::unique_ptr<AttentionBackend> make_xformers();
std::unique_ptr<AttentionBackend> make_triton_attn();
std::unique_ptr<AttentionBackend> make_triton_attn_diffkv();
std::unique_ptr<AttentionBackend> make_differential_flash_attn();

}  // namespace quire::backends
