// PagedBuilder: thresholds, orders and refusals of the backends; the metadata itself is made by the plan.
#include "backends/paged_builder.h"

#include <algorithm>
#include <string>
#include <utility>

#include "backends/layer_config.h"
#include "plan/make_metadata.h"

namespace quire::backends {
namespace {

Status not_in_batch(const BackendTraits& traits, std::string_view what) {
  return unsupported("common." + std::string(what) + ": not supported by " + std::string(traits.name));
}

Status check_on_device(std::string_view name, const TensorView& tensor) {
  if (tensor.empty() || tensor.device.type == DeviceType::kCuda) return {};
  return invalid_argument("common." + std::string(name) + ".device: want cuda, got " + device_name(tensor.device));
}

// Replays of a graph read what the caller writes into these tensors.
Status check_can_change(std::string_view name, const TensorView& tensor) {
  if (!tensor.empty() && tensor.device.type == DeviceType::kCuda) return {};
  return invalid_argument("common." + std::string(name) +
                          ": want a tensor on the device, where replays of the graph find their lengths, got none");
}

}  // namespace

PagedBuilder::PagedBuilder(const BackendTraits& traits, const BuilderConfig& config)
    : traits_(traits), config_(config) {
  if (config.runtime.backplane == Backplane::kCuda) pool_ = std::make_shared<DevicePool>(config.runtime.stream);
}

Result<std::unique_ptr<AttentionMetadataBuilder>> PagedBuilder::create(const BackendTraits& traits,
                                                                       const BuilderConfig& config) {
  QUIRE_RETURN_IF_ERROR(check_builder_config(traits, config));
  return std::unique_ptr<AttentionMetadataBuilder>(new PagedBuilder(traits, config));
}

std::int32_t PagedBuilder::reorder_batch_threshold() const {
  switch (traits_.threshold) {
    case DecodeThreshold::kNone:
      return 0;
    case DecodeThreshold::kOne:
      return 1;
    case DecodeThreshold::kTreeSize:  // without a tree, of the chain of all drafts
      return config_.tree ? config_.tree->size() : 1 + std::max(config_.num_speculative_tokens, 1);
    case DecodeThreshold::kSpeculative:
      return 1 + config_.num_speculative_tokens;
  }
  return 0;
}

std::vector<std::pair<std::int32_t, std::int32_t>> PagedBuilder::reorder_batch(const ReorderInput& input) const {
  if (!traits_.reorder) return {};
  ReorderInput own = input;
  own.decode_threshold = reorder_batch_threshold();
  return reorder_swaps(own, *traits_.reorder);
}

Result<MetadataOptions> PagedBuilder::options() const {
  const std::int32_t streams = traits_.format == KVCacheFormat::kDifferential ? 2 : 1;
  QUIRE_ASSIGN_OR_RETURN(MetadataOptions options, metadata_options(config_, streams));
  QUIRE_ASSIGN_OR_RETURN(options.variant, bounding_terms(config_));
  options.order = traits_.order;
  options.decode_threshold = reorder_batch_threshold();
  options.tree_use = traits_.trees ? TreeUse::kVerify : TreeUse::kNone;
  return options;
}

Status PagedBuilder::check_batch(const CommonAttentionMetadata& common) const {
  if (!common.mm_ranges.empty() && !traits_.mm_prefix) return not_in_batch(traits_, "mm_ranges");
  const auto is_tree = [](const TokenTree* tree) { return tree != nullptr; };
  if (!traits_.trees && std::any_of(common.trees.begin(), common.trees.end(), is_tree))
    return not_in_batch(traits_, "trees");
  const bool all_causal = common.causal_per_seq.empty()
                              ? common.causal
                              : std::all_of(common.causal_per_seq.begin(), common.causal_per_seq.end(),
                                            [](std::uint8_t causal) { return causal != 0; });
  const bool decoder = config_.attn_type == AttentionType::kDecoder;
  if (decoder && !all_causal && !traits_.non_causal) return not_in_batch(traits_, "causal: non-causal attention");
  return {};
}

Result<AttentionMetadata> PagedBuilder::make(const CommonAttentionMetadata& common, const MetadataOptions& options,
                                             ArrayUse use) const {
  QUIRE_RETURN_IF_ERROR(check_batch(common));
  if (pool_ == nullptr) return make_metadata(common, options);
  QUIRE_RETURN_IF_ERROR(check_on_device("block_table", common.block_table_tensor));
  QUIRE_RETURN_IF_ERROR(check_on_device("slot_mapping", common.slot_mapping));
  QUIRE_ASSIGN_OR_RETURN(AttentionMetadata metadata, make_metadata(common, options));
  QUIRE_RETURN_IF_ERROR(place_on_device(metadata, pool_, use));
  return metadata;
}

Result<AttentionMetadata> PagedBuilder::build(std::int32_t common_prefix_len, const CommonAttentionMetadata& common) {
  const bool refused = traits_.common_prefix == CommonPrefix::kRefused && common_prefix_len > 0;
  if (common_prefix_len < 0 || refused) {
    return invalid_argument("common_prefix_len: want " + std::string(refused ? "0 (see cascade_attention)" : ">= 0") +
                            " for " + std::string(traits_.name) + ", got " + std::to_string(common_prefix_len));
  }
  QUIRE_ASSIGN_OR_RETURN(const MetadataOptions own, options());
  return make(common, own);
}

Result<AttentionMetadata> PagedBuilder::build_for_cudagraph_capture(const CommonAttentionMetadata& common) {
  QUIRE_ASSIGN_OR_RETURN(MetadataOptions own, options());
  own.lengths = traits_.capture_lengths;
  if (pool_ != nullptr) {
    own.lengths = LengthUse::kLongest;
    QUIRE_RETURN_IF_ERROR(check_can_change("query_start_loc", common.query_start_loc));
    QUIRE_RETURN_IF_ERROR(check_can_change("seq_lens", common.seq_lens));
  }
  return make(common, own, traits_.trees ? ArrayUse::kReplaysWithTrees : ArrayUse::kReplays);
}

Status PagedBuilder::update_for_cudagraph_replay(const AttentionMetadata& captured,
                                                 const CommonAttentionMetadata& common) {
  QUIRE_RETURN_IF_ERROR(check_batch(common));
  QUIRE_ASSIGN_OR_RETURN(const MetadataOptions own, options());
  QUIRE_ASSIGN_OR_RETURN(AttentionMetadata step, make_metadata(common, own));
  return replace_on_device(captured, std::move(step));
}

}  // namespace quire::backends
