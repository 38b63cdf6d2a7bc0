// Attention metadata: what a scheduler knows of a batch, what builders make of it, and the pure functions they share.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "quire/plan.h"
#include "quire/status.h"
#include "quire/tensor.h"
#include "quire/tree.h"
#include "quire/variant.h"

namespace quire {

struct MmRange {
  std::int32_t start = 0;  // inclusive absolute positions; start >= end means nothing
  std::int32_t end = 0;
};

// The batch as the engine hands it to every builder. Spans and views are the caller's and must outlive the metadata
// that is built from them. The *_cpu arrays are on the host; the tensors are where attention runs. query_start_loc and
// seq_lens may be left empty: then the host arrays are used, or copied to the device by the builder. What is to be
// replayed from a CUDA graph needs both on the device, where the caller changes them between replays.
struct CommonAttentionMetadata {
  std::span<const std::int32_t> query_start_loc_cpu;      // [num_reqs + 1]
  std::span<const std::int32_t> seq_lens_cpu;             // [num_reqs]
  std::span<const std::int32_t> num_computed_tokens_cpu;  // [num_reqs], optional
  TensorView query_start_loc;                             // int32 [num_reqs + 1]
  TensorView seq_lens;                                    // int32 [num_reqs]
  std::int32_t num_reqs = 0;
  std::int32_t num_actual_tokens = 0;  // without padding
  std::int32_t max_query_len = 0;
  std::int32_t max_seq_len = 0;   // may be an upper bound
  TensorView block_table_tensor;  // int32 [num_reqs, max_blocks]; empty for encoder attention
  TensorView slot_mapping;        // int64 [num_actual_tokens or more]; empty for encoder attention
  bool causal = true;
  std::span<const std::uint8_t> causal_per_seq;         // [num_reqs], optional: overrides causal
  std::span<const std::int32_t> logits_indices_padded;  // for KV-sharing fast prefill
  std::int32_t num_logits_indices = 0;
  std::span<const std::int32_t> encoder_seq_lens_cpu;  // [num_reqs], cross attention: keys of the encoder
  TensorView positions;                                // optional int64 [num_tokens]
  std::span<const std::uint8_t> is_prefilling;         // [num_reqs], optional
  // mm-prefix: request i has ranges mm_ranges[mm_range_start[i] .. mm_range_start[i + 1]); both empty: none.
  std::span<const MmRange> mm_ranges;
  std::span<const std::int32_t> mm_range_start;  // [num_reqs + 1]
  // Trees by request [num_reqs], null for a request without one; empty: the builder's own tree for requests of its
  // size.
  std::span<const TokenTree* const> trees;
};

struct DecodePrefillSplit {
  std::int32_t num_decodes = 0;
  std::int32_t num_prefills = 0;
  std::int32_t num_decode_tokens = 0;
  std::int32_t num_prefill_tokens = 0;
  friend bool operator==(const DecodePrefillSplit&, const DecodePrefillSplit&) = default;
};
// How uniform decodes are asked for: any lengths up to the threshold, or all equal.
enum class DecodeUniformity : std::uint8_t { kAnyLength, kUniform };
// Counts by length alone: a request of at most decode_threshold tokens is a decode. Decodes must be in front; otherwise
// an error names the first request out of order. Behind the first prefill, fresh prompts (query_len == seq_len) and
// requests without tokens may be of any length and count as prefills.
Result<DecodePrefillSplit> split_decodes_and_prefills(const CommonAttentionMetadata& common,
                                                      std::int32_t decode_threshold = 1,
                                                      DecodeUniformity uniformity = DecodeUniformity::kAnyLength);

struct DecodePrefillExtendSplit {
  std::int32_t num_decodes = 0;
  std::int32_t num_extends = 0;
  std::int32_t num_prefills = 0;
  std::int32_t num_decode_tokens = 0;
  std::int32_t num_extend_tokens = 0;
  std::int32_t num_prefill_tokens = 0;
  friend bool operator==(const DecodePrefillExtendSplit&, const DecodePrefillExtendSplit&) = default;
};
// The same with the prefills that already have context, the extends, in a region of their own between the two.
Result<DecodePrefillExtendSplit> split_decodes_prefills_and_extends(const CommonAttentionMetadata& common,
                                                                    std::int32_t decode_threshold = 1);

// The swaps that sort a batch: pairs of batch indices to exchange, in order.
struct ReorderInput {
  std::span<const std::int32_t> num_scheduled_tokens;  // [num_reqs]
  std::span<const std::int32_t> num_computed_tokens;   // [num_reqs]; unused by kTwoRegions, where it may be empty
  std::int32_t decode_threshold = 1;
};
enum class ReorderForm : std::uint8_t {
  kTwoRegions,     // decode | prefill, a decode being a request of at most decode_threshold new tokens
  kThreeRegions,   // decode | extend | prefill, a prefill being a request without computed tokens
  kPrefillsFirst,  // prefill | decode; DIFFERENTIAL_FLASH_ATTN's order, a decode has computed tokens and few new ones
};
// Spans shorter than num_scheduled_tokens count as zeros.
std::vector<std::pair<std::int32_t, std::int32_t>> reorder_swaps(const ReorderInput& input, ReorderForm form);

// Arrays that a function derived from a batch; `common` points into them and at the original.
struct DerivedBatch {
  CommonAttentionMetadata common;
  std::vector<std::int32_t> query_start_loc;
  std::vector<std::int32_t> seq_lens;
  std::vector<std::int32_t> num_computed_tokens;
  std::vector<std::int32_t> block_table;
};
// Chunked local attention as virtual sequences: each request becomes one sequence a chunk that its new tokens touch,
// with the keys of that chunk alone. Errors: chunk % block_size != 0, a block table on a device, a batch with trees,
// mm-prefix ranges or causal flags (their positions would shift; the chunk term of Variant takes them).
Result<std::unique_ptr<DerivedBatch>> make_local_attention_virtual_batches(std::int32_t chunk,
                                                                           const CommonAttentionMetadata& common,
                                                                           std::int32_t block_size);
// The batch that layers after the first of a KV-sharing group see: only the rows whose logits are wanted, the first
// num_logits_indices of logits_indices_padded. They must be the last rows of their requests, in ascending order. A
// batch of single tokens comes back as it is.
Result<std::unique_ptr<DerivedBatch>> make_kv_sharing_fast_prefill_batch(const CommonAttentionMetadata& common);

// slot = block_table[i][p / block_size] * block_size + p % block_size for the positions of each request's new tokens.
// Elements behind num_actual_tokens become -1. Errors: a position beyond the block table, a block id out of range, a
// block table on a device.
Status compute_slot_mapping(const CommonAttentionMetadata& common, std::int32_t block_size, std::int64_t num_blocks,
                            std::span<std::int64_t> slot_mapping);

// The slots of one request whose prompt stores only the keys that a sliding window may still need: the first
// max(0, query_len - sliding_window) positions of a prompt get -1. Appends one slot a new token to `slots`.
struct WindowedSlotsInput {
  std::span<const std::int32_t> block_table;  // of this request
  std::int32_t block_size = 0;
  std::int32_t context_len = 0;
  std::int32_t query_len = 0;
  std::int32_t prompt_window = 0;  // > 0: the request is a prompt of a layer with this sliding window
};
Status append_windowed_slots(const WindowedSlotsInput& input, std::vector<std::int64_t>& slots);

// Whether a sequence may have fewer keys than queries. Graph-capture dummies and cross attention do; their context_len
// is negative and rows at negative positions see no causal key.
enum class ContextRule : std::uint8_t { kNonNegative, kUnchecked };

struct BatchLimits {
  std::int64_t num_blocks = 0;
  std::int32_t block_size = 0;
  ContextRule context = ContextRule::kNonNegative;
};
// Checks everything about a batch that the host can see, in time proportional to its tokens and blocks: starts monotone
// from 0 to num_actual_tokens, seq_len >= query_len, seq_len within the block table, block ids in [0, num_blocks),
// slots in [-1, num_blocks * block_size), max_query_len and max_seq_len at least the true ones, trees of the request's
// query_len. Tables on a device are checked for their shapes only. Without a block table (encoder attention) num_blocks
// and block_size are not looked at. Messages name the request.
Status validate_batch(const CommonAttentionMetadata& common, const BatchLimits& limits);

struct AttentionMetadata;

// The device's copies of a metadata's host arrays; what it is made of is the library's own.
class DeviceArrays;

// The two parts of a metadata, made on first use by any thread. A copy of the metadata makes its own.
class MetadataParts {
 public:
  enum class Part : std::uint8_t { kPrefill, kDecode };

  MetadataParts() = default;
  MetadataParts(const MetadataParts&) noexcept {}
  MetadataParts& operator=(const MetadataParts& other) noexcept;
  ~MetadataParts() = default;

  const AttentionMetadata* get(const AttentionMetadata& whole, Part part) const;

 private:
  struct Slot {
    std::shared_ptr<const AttentionMetadata> owned;
    std::atomic<const AttentionMetadata*> published{nullptr};
  };
  mutable std::mutex mutex_;
  mutable Slot slots_[2];
};

// What a builder makes of a batch for one kind of layer. It owns its small arrays and views the caller's tensors.
struct AttentionMetadata {
  std::int32_t num_reqs = 0;
  std::int32_t num_actual_tokens = 0;
  std::int32_t max_query_len = 0;
  std::int32_t max_seq_len = 0;
  std::int32_t num_decodes = 0;
  std::int32_t num_prefills = 0;
  std::int32_t num_decode_tokens = 0;
  std::int32_t num_prefill_tokens = 0;
  bool prefills_first = false;  // DIFFERENTIAL_FLASH_ATTN's order
  bool causal = true;
  std::vector<std::int32_t> query_start_loc;  // host [num_reqs + 1]
  std::vector<std::int32_t> seq_lens;         // host [num_reqs]
  TensorView query_start_loc_device;          // empty on the CPU
  TensorView seq_lens_device;
  std::shared_ptr<const DeviceArrays> device_arrays;  // null on the CPU; shared by copies of the metadata
  TensorView block_table;
  TensorView slot_mapping;
  std::vector<std::uint8_t> causal_per_seq;
  std::vector<std::int32_t> mm_prefix_ranges;  // [num_reqs, mm_prefix_max_ranges, 2]
  std::int32_t mm_prefix_max_ranges = 0;
  std::vector<std::int32_t> tree_sizes;  // [num_reqs], empty: no trees
  std::vector<std::int64_t> tree_mask_offsets;
  std::vector<std::uint64_t> tree_masks;
  std::vector<std::int64_t> tree_bias_offsets;  // empty: masks only
  std::vector<float> tree_biases;
  std::vector<std::int32_t> logits_indices_padded;
  std::int32_t num_logits_indices = 0;
  std::int64_t num_blocks = 0;  // block ids were checked against this
  std::int32_t block_size = 0;
  // The terms the plan was clipped with; an impl whose own terms see more refuses the metadata. Its pointers are null:
  // bind_batch_terms sets those that belong to the batch.
  Variant plan_variant;
  PlanConfig plan_config;
  AttentionPlan plan;

  // Points the terms that belong to the batch (causal flag, causal_per_seq, mm-prefix ranges, trees) at this object's
  // arrays, those on the device if there are any, or to null where the batch has none. The object must outlive the
  // variant's use.
  void bind_batch_terms(Variant& variant) const;

  // The prefill and the decode part as metadata of their own (starts rebased to 0, tables and slots sliced, own plan),
  // made on first use, null if empty or if the backend does not split. They live as long as this object and do not
  // follow later changes to it. On a device the part that is not in front has new starts, which are copied there: null
  // if that fails. The indices of wanted logits stay with the whole.
  const AttentionMetadata* prefill_metadata() const;
  const AttentionMetadata* decode_metadata() const;

 private:
  MetadataParts parts_;
};

}  // namespace quire
