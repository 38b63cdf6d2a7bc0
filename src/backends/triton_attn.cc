// TRITON_ATTN: the general backend: every term, every cache dtype, all attention types, batches in any order.
#include "backends/traits.h"

namespace quire::backends {
namespace {

constexpr std::array<std::string_view, 2> kTritonNotes = {
    "Encoder attention reads the new keys themselves and has no cache; cross attention reads a cache of encoder keys.",
    "A sliding window of non-causal rows reaches as far ahead as behind; a window of 1 is the token itself.",
};

constexpr BackendTraits kTritonTraits = {
    .name = "TRITON_ATTN",
    .summary = "The general backend: all terms, cache dtypes and attention types, batches in any order.",
    .notes = kTritonNotes,
    .format = KVCacheFormat::kBlockFirst,
    .attn_types = kAllTypes,
    .sinks = true,
    .mm_prefix = true,
    .alibi_sqrt = true,
    .non_causal = true,
    .cudagraph = CudagraphSupport::kAlways,
    .capture_lengths = LengthUse::kGraphCapture,
    .common_prefix = CommonPrefix::kRefused,
};

}  // namespace

std::unique_ptr<AttentionBackend> make_triton_attn() { return std::make_unique<BuiltinBackend>(kTritonTraits); }

}  // namespace quire::backends
