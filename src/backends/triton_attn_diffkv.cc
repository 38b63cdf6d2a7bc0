// TRITON_ATTN_DIFFKV: keys and values of different widths, packed as one row K|V a token and head.
#include "backends/traits.h"

namespace quire::backends {
namespace {

constexpr std::array<std::string_view, 2> kDiffKvNotes = {
    "head_size_v belongs to a layer: layers of one model may differ.",
    "The reordering by reorder_batch is a preference; build takes requests in any order.",
};

constexpr BackendTraits kDiffKvTraits = {
    .name = "TRITON_ATTN_DIFFKV",
    .summary = "Values of another width than keys, in one packed K|V row a token and head.",
    .notes = kDiffKvNotes,
    .format = KVCacheFormat::kPackedKV,
    .sinks = true,
    .mm_prefix = true,
    .alibi_sqrt = true,
    .non_causal = true,
    .cudagraph = CudagraphSupport::kUniformBatch,
    .capture_lengths = LengthUse::kGraphCapture,
    .reorder = ReorderForm::kThreeRegions,
    .threshold = DecodeThreshold::kSpeculative,
    .batch_order = "any; reorder_batch sorts decodes (at most 1 + speculative tokens), extends, prefills",
    .common_prefix = CommonPrefix::kRefused,
};

}  // namespace

std::unique_ptr<AttentionBackend> make_triton_attn_diffkv() { return std::make_unique<BuiltinBackend>(kDiffKvTraits); }

}  // namespace quire::backends
