// From a batch and a kind of layer to AttentionMetadata: the part that all builders share.
#pragma once

#include <cstdint>

#include "quire/backend.h"
#include "quire/metadata.h"

namespace quire {

// How the batch is ordered, and so what num_decodes and num_prefills say.
enum class BatchOrder : std::uint8_t {
  kUnsplit,        // the backend does not split; the counts stay 0
  kDecodesFirst,   // split_decodes_and_prefills with decode_threshold
  kPrefillsFirst,  // a prefill has more than decode_threshold new tokens or no context (or is_prefilling says so)
};

// Which rows of the batch stand for tree nodes. Trees come from common.trees by request or, where that is empty, from
// `MetadataOptions::tree` for every request whose query_len fits it; all other requests are plain.
enum class TreeUse : std::uint8_t {
  kNone,    // no tree counts: a plain batch, or the root level of drafting
  kVerify,  // rows are all nodes, the root included: query_len == size
  kDraft,   // rows are the nodes behind the root: query_len < size; MetadataOptions::tree counts for max_query_len rows
};
enum class TreeForm : std::uint8_t { kMask, kMaskAndBias };  // bias: the 0 / -inf float matrix beside the bit mask

// kGraphCapture: all seq_lens become 1, so that a captured run is short; block ids stay checked. kLongest: the plan is
// made for sequences of max_seq_len, as far as the block table goes, so that it bounds every batch that a graph on a
// device is replayed with; the lengths themselves are the caller's tensors there.
enum class LengthUse : std::uint8_t { kActual, kGraphCapture, kLongest };

struct MetadataOptions {
  // Terms of the layer that bound its keys (window, chunk). `causal` is set from the batch: decoders take common.causal
  // and causal_per_seq, encoder types and cross attention are never causal. Pointers are not read.
  Variant variant;
  PlanConfig plan;
  // Encoder types: seq_lens are the query_lens and there is no block table. Cross attention: seq_lens are
  // common.encoder_seq_lens_cpu.
  AttentionType attn_type = AttentionType::kDecoder;
  BatchLimits limits;
  BatchOrder order = BatchOrder::kUnsplit;
  std::int32_t decode_threshold = 1;
  TreeUse tree_use = TreeUse::kNone;
  TreeForm tree_form = TreeForm::kMask;
  const TokenTree* tree = nullptr;
  LengthUse lengths = LengthUse::kActual;
};

// Options for the layers that `config` describes: window (decoders (w - 1, 0), encoder types (w - 1, w - 1), cross
// none), chunk, rows that share a K/V load (num_streams is 2 for differential attention), limits and, when the config
// has a tree, the tree for verification. The config must outlive the options.
Result<MetadataOptions> metadata_options(const BuilderConfig& config, std::int32_t num_streams = 1);

// Checks the batch (validate_batch) and makes its metadata, the plan included. The metadata views the batch's tensors
// and owns copies of everything else.
Result<AttentionMetadata> make_metadata(const CommonAttentionMetadata& common, const MetadataOptions& options);

}  // namespace quire
