// TREE_ATTN: requests may carry a tree of draft tokens, each of which sees the context and its ancestors.
#include "backends/layer_config.h"
#include "backends/paged_builder.h"

namespace quire::backends {
namespace {

constexpr std::array<std::string_view, 3> kTreeNotes = {
    "Trees are of any shape and belong to requests: common.trees gives each its own, and the builder's tree counts for "
    "the requests of its size.",
    "Tree masks go with quantised caches, sliding windows, ALiBi and sinks.",
    "Windows and ALiBi measure distance in slots, not in tree depth.",
};

constexpr BackendTraits kTreeTraits = {
    .name = "TREE_ATTN",
    .summary = "Speculative decoding with trees of draft tokens.",
    .notes = kTreeNotes,
    .format = KVCacheFormat::kKVFirst,
    .sinks = true,
    .trees = true,
    .order = BatchOrder::kDecodesFirst,
    .reorder = ReorderForm::kTwoRegions,
    .threshold = DecodeThreshold::kTreeSize,
    .batch_order = "decodes (at most the tree's size) first, then prefills",
};

class TreeAttnBuilder final : public PagedBuilder {
 public:
  explicit TreeAttnBuilder(const BuilderConfig& config) : PagedBuilder(kTreeTraits, config) {}

  // The root level is plain causal and all prefill. Later levels run all earlier drafts again, without the root: row r
  // is node r + 1 of the tree.
  Result<AttentionMetadata> build_for_drafting(const CommonAttentionMetadata& common,
                                               std::int32_t draft_index) override {
    if (draft_index < 0) return invalid_argument("draft_index: want >= 0, got " + std::to_string(draft_index));
    QUIRE_ASSIGN_OR_RETURN(MetadataOptions level, options());
    level.tree_use = draft_index == 0 ? TreeUse::kNone : TreeUse::kDraft;
    level.decode_threshold = draft_index == 0 ? 0 : common.max_query_len;
    return make(common, level);
  }
};

class TreeAttnBackend final : public BuiltinBackend {
 public:
  TreeAttnBackend() : BuiltinBackend(kTreeTraits) {}

  Result<std::unique_ptr<AttentionMetadataBuilder>> make_builder(const BuilderConfig& config) const override {
    QUIRE_RETURN_IF_ERROR(check_builder_config(kTreeTraits, config));
    return std::unique_ptr<AttentionMetadataBuilder>(new TreeAttnBuilder(config));
  }
};

}  // namespace

std::unique_ptr<AttentionBackend> make_tree_attn() { return std::make_unique<TreeAttnBackend>(); }

}  // namespace quire::backends
