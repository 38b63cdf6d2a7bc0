// XFORMERS: causal block-diagonal attention, decodes in front of prefills.
#include "backends/traits.h"

namespace quire::backends {
namespace {

constexpr std::array<std::string_view, 1> kXformersNotes = {
    "Decodes honour the sliding window, softcap, ALiBi and the cache's scales, as prefills do.",
};

constexpr BackendTraits kXformersTraits = {
    .name = "XFORMERS",
    .summary = "Causal attention with decodes in front of prefills.",
    .notes = kXformersNotes,
    .format = KVCacheFormat::kKVFirst,
    .order = BatchOrder::kDecodesFirst,
    .reorder = ReorderForm::kTwoRegions,
    .threshold = DecodeThreshold::kOne,
    .batch_order = "decodes (1 token) first, then prefills",
};

}  // namespace

std::unique_ptr<AttentionBackend> make_xformers() { return std::make_unique<BuiltinBackend>(kXformersTraits); }

}  // namespace quire::backends
