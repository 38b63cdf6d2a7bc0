// What every backend has: names of attention types, cache shapes, and the reasons why a configuration cannot run.
#include "quire/backend.h"

#include <algorithm>
#include <array>

#include "backends/traits.h"
#include "quire/cuda.h"

namespace quire {
namespace {

constexpr std::array<std::string_view, 4> kTypeNames = {"decoder", "encoder", "encoder_only", "encoder_decoder"};

std::string quoted(std::string_view text) { return "'" + std::string(text) + "'"; }

template <class Values, class Name>
std::string join(const Values& values, const Name& name) {
  std::string out;
  for (const auto& value : values) out += (out.empty() ? "" : ", ") + std::string(name(value));
  return out;
}

// The reasons in the order in which they are reported.
class Reasons {
 public:
  void unless(const bool fine, std::string reason) {
    if (!fine) reasons_.push_back(std::move(reason));
  }
  std::vector<std::string> take() { return std::move(reasons_); }

 private:
  std::vector<std::string> reasons_;
};

template <class T>
bool contains(std::span<const T> values, T value) {
  return std::find(values.begin(), values.end(), value) != values.end();
}

std::string head_size_text(std::int32_t head_size, std::int32_t head_size_v) {
  return head_size == head_size_v ? std::to_string(head_size)
                                  : std::to_string(head_size) + " with head_size_v " + std::to_string(head_size_v);
}

// Head sizes, dtypes and blocks.
void judge_shapes(const AttentionBackend& backend, const AttentionConfig& config, Reasons& reasons) {
  const std::int32_t head_size_v = config.head_size_v == 0 ? config.head_size : config.head_size_v;
  reasons.unless(backend.supports_head_size(config.head_size, head_size_v),
                 "head_size not supported: got " + head_size_text(config.head_size, head_size_v));
  reasons.unless(contains(backend.supported_dtypes(), config.dtype),
                 "dtype not supported: want one of " + join(backend.supported_dtypes(), dtype_name) + ", got " +
                     std::string(dtype_name(config.dtype)));
  reasons.unless(contains(backend.supported_kv_cache_dtypes(), config.kv_cache_dtype),
                 "kv_cache_dtype not supported: want one of " +
                     join(backend.supported_kv_cache_dtypes(), kv_cache_dtype_name) + ", got " +
                     std::string(kv_cache_dtype_name(config.kv_cache_dtype)));
  reasons.unless(!config.block_size || backend.supports_block_size(*config.block_size),
                 "block_size not supported: want a multiple of " + std::to_string(backend.block_size_multiple()) +
                     ", got " + std::to_string(config.block_size.value_or(0)));
}

// What the model and the engine around it ask for.
void judge_features(const AttentionBackend& backend, const AttentionConfig& config, Reasons& reasons) {
  reasons.unless(!config.use_mm_prefix || backend.supports_mm_prefix(),
                 "partial multimodal token full attention not supported");
  reasons.unless(!config.use_mla, "MLA not supported");
  reasons.unless(!config.has_sink || backend.supports_sink(), "attention sinks not supported");
  reasons.unless(!config.use_sparse, "sparse not supported");
  reasons.unless(!config.use_per_head_quant_scales, "per-head quant scales not supported");
  const bool on_gpu = config.backplane == Backplane::kCuda;
  reasons.unless(!on_gpu || backend.supports_compute_capability(config.device_capability),
                 "compute capability not supported: got " + std::to_string(config.device_capability.major) + "." +
                     std::to_string(config.device_capability.minor));
  reasons.unless(backend.supports_attn_type(config.attn_type),
                 "attention type " + std::string(attention_type_name(config.attn_type)) + " not supported");
  reasons.unless(!config.use_non_causal || backend.supports_non_causal(), "non-causal attention not supported");
  reasons.unless(!config.use_batch_invariant || backend.supports_batch_invariance(), "batch invariance not supported");
  reasons.unless(!config.use_kv_connector || backend.supports_kv_connector(), "KV connector not supported");
}

// What the reference does not ask: beyond its list, in the order of the fields.
void judge_extras(const AttentionBackend& backend, const AttentionConfig& config, Reasons& reasons) {
  const bool has_own_keys =
      config.attn_type == AttentionType::kEncoder || config.attn_type == AttentionType::kEncoderOnly;
  reasons.unless(!has_own_keys || !is_quantized(config.kv_cache_dtype),
                 "quantised kv_cache_dtype " + std::string(kv_cache_dtype_name(config.kv_cache_dtype)) +
                     " with attention type " + std::string(attention_type_name(config.attn_type)) + " not supported");
  reasons.unless(!config.use_alibi_sqrt || backend.supports_alibi_sqrt(), "square-root ALiBi not supported");
  reasons.unless(!config.use_output_quant || backend.supports_output_quant(), "output quantisation not supported");
  reasons.unless(backend.supports_backplane(config.backplane),
                 "backplane " + std::string(backplane_name(config.backplane)) + " not supported");
  reasons.unless(config.backplane != Backplane::kCuda || cuda::is_compiled(),
                 "backplane cuda not available: this build has no CUDA kernels");
}

}  // namespace

std::string_view attention_type_name(AttentionType type) { return kTypeNames[static_cast<std::size_t>(type)]; }

Result<AttentionType> parse_attention_type(std::string_view name) {
  for (std::size_t i = 0; i < kTypeNames.size(); ++i) {
    if (kTypeNames[i] == name) return static_cast<AttentionType>(i);
  }
  return invalid_argument("attention type: want one of " + join(kTypeNames, [](std::string_view n) { return n; }) +
                          ", got " + quoted(name));
}

std::int32_t AttentionBackend::preferred_block_size(std::int32_t wanted) const {
  return supports_block_size(wanted) ? wanted : block_size_multiple();
}

int AttentionBackend::kv_cache_block_dim() const { return backends::kv_block_dim(kv_cache_format()); }

bool AttentionBackend::indexes_kv_by_block_stride(KVCacheLayout layout) const {
  const auto plain = kv_cache_stride_order(layout, false);
  const auto layered = kv_cache_stride_order(layout, true);
  return plain.ok() && layered.ok() && layered->size() == plain->size() + 1 && layered->front() != 0;
}

// CPU cores read pages with the heads outside, 4 KB at a time, a third faster.
KVCacheLayout fastest_kv_cache_layout(const AttentionBackend& backend, Backplane backplane) {
  const bool is_hnd = backplane == Backplane::kCpu && backend.kv_cache_stride_order(KVCacheLayout::kHND, false).ok();
  return is_hnd ? KVCacheLayout::kHND : KVCacheLayout::kNHD;
}

Result<std::vector<std::int64_t>> AttentionBackend::kv_cache_shape(const KVCacheSpec& spec) const {
  if (!supports_block_size(spec.block_size)) {
    return invalid_argument("block_size: Block size must be a multiple of " + std::to_string(block_size_multiple()) +
                            ", got " + std::to_string(spec.block_size));
  }
  KVCacheSpec own = spec;
  own.format = kv_cache_format();
  return quire::kv_cache_shape(own);
}

Result<std::vector<int>> AttentionBackend::kv_cache_stride_order(KVCacheLayout layout, bool include_num_layers) const {
  return quire::kv_cache_stride_order(kv_cache_format(), layout, include_num_layers);
}

std::vector<std::string> AttentionBackend::validate_configuration(const AttentionConfig& config) const {
  Reasons reasons;
  judge_shapes(*this, config, reasons);
  judge_features(*this, config, reasons);
  judge_extras(*this, config, reasons);
  return reasons.take();
}

Result<AttentionMetadata> AttentionMetadataBuilder::build_for_drafting(const CommonAttentionMetadata& common,
                                                                       std::int32_t draft_index) {
  if (draft_index < 0) return invalid_argument("draft_index: want >= 0, got " + std::to_string(draft_index));
  return build(0, common);
}

Result<AttentionMetadata> AttentionMetadataBuilder::build_for_cudagraph_capture(const CommonAttentionMetadata& common) {
  return build(0, common);
}

Status AttentionMetadataBuilder::update_for_cudagraph_replay(const AttentionMetadata& /*captured*/,
                                                             const CommonAttentionMetadata& /*common*/) {
  return unsupported("update_for_cudagraph_replay: not supported by this builder");
}

std::vector<std::pair<std::int32_t, std::int32_t>> AttentionMetadataBuilder::reorder_batch(
    const ReorderInput& input) const {
  if (reorder_batch_threshold() == 0) return {};
  ReorderInput own = input;
  own.decode_threshold = reorder_batch_threshold();
  return reorder_swaps(own, ReorderForm::kTwoRegions);
}

}  // namespace quire
