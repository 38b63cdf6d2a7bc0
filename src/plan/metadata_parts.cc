// AttentionMetadata: its batch terms, and its prefill and decode parts.
#include <algorithm>

#include "plan/batch.h"
#include "plan/device_arrays.h"

namespace quire {
namespace {

// Requests [first, last) of a batch.
struct Requests {
  std::int32_t first = 0;
  std::int32_t last = 0;
};

template <class T>
std::vector<T> rows_of(const std::vector<T>& values, Requests reqs, std::int32_t width = 1) {
  if (values.empty()) return {};
  const auto begin = values.begin() + static_cast<std::ptrdiff_t>(reqs.first) * width;
  return {begin, begin + static_cast<std::ptrdiff_t>(reqs.last - reqs.first) * width};
}

// Rows [begin, end) of a tensor that may be absent.
TensorView rows_of(const TensorView& tensor, std::int64_t begin, std::int64_t end) {
  return tensor ? slice(tensor, 0, begin, end) : TensorView{};
}

void copy_lengths(const AttentionMetadata& whole, Requests reqs, AttentionMetadata& part) {
  const std::int32_t first_token = whole.query_start_loc[static_cast<std::size_t>(reqs.first)];
  part.seq_lens = rows_of(whole.seq_lens, reqs);
  part.query_start_loc = rows_of(whole.query_start_loc, {reqs.first, reqs.last + 1});
  for (std::int32_t& start : part.query_start_loc) start -= first_token;
  for (std::size_t i = 0; i < part.seq_lens.size(); ++i) {
    part.max_query_len = std::max(part.max_query_len, part.query_start_loc[i + 1] - part.query_start_loc[i]);
    part.max_seq_len = std::max(part.max_seq_len, part.seq_lens[i]);
  }
}

void copy_terms(const AttentionMetadata& whole, Requests reqs, AttentionMetadata& part) {
  part.causal = whole.causal;
  part.causal_per_seq = rows_of(whole.causal_per_seq, reqs);
  part.mm_prefix_max_ranges = whole.mm_prefix_max_ranges;
  part.mm_prefix_ranges = rows_of(whole.mm_prefix_ranges, reqs, whole.mm_prefix_max_ranges * 2);
  const std::vector<std::int32_t> tree_sizes = rows_of(whole.tree_sizes, reqs);
  if (std::all_of(tree_sizes.begin(), tree_sizes.end(), [](std::int32_t size) { return size == 0; })) return;
  part.tree_sizes = tree_sizes;
  part.tree_mask_offsets = rows_of(whole.tree_mask_offsets, reqs);
  part.tree_masks = whole.tree_masks;
  part.tree_bias_offsets = rows_of(whole.tree_bias_offsets, reqs);
  part.tree_biases = whole.tree_biases;
}

std::shared_ptr<const AttentionMetadata> make_part(const AttentionMetadata& whole, Requests reqs,
                                                   MetadataParts::Part kind) {
  auto part = std::make_shared<AttentionMetadata>();
  const std::int32_t first_token = whole.query_start_loc[static_cast<std::size_t>(reqs.first)];
  const std::int32_t last_token = whole.query_start_loc[static_cast<std::size_t>(reqs.last)];
  part->num_reqs = reqs.last - reqs.first;
  part->num_actual_tokens = last_token - first_token;
  const bool is_prefill = kind == MetadataParts::Part::kPrefill;
  (is_prefill ? part->num_prefills : part->num_decodes) = part->num_reqs;
  (is_prefill ? part->num_prefill_tokens : part->num_decode_tokens) = part->num_actual_tokens;
  part->prefills_first = whole.prefills_first;
  copy_lengths(whole, reqs, *part);
  copy_terms(whole, reqs, *part);
  if (first_token == 0) part->query_start_loc_device = rows_of(whole.query_start_loc_device, reqs.first, reqs.last + 1);
  part->seq_lens_device = rows_of(whole.seq_lens_device, reqs.first, reqs.last);
  part->block_table = rows_of(whole.block_table, reqs.first, reqs.last);
  part->slot_mapping = rows_of(whole.slot_mapping, first_token, last_token);
  part->num_blocks = whole.num_blocks;
  part->block_size = whole.block_size;
  part->plan_config = whole.plan_config;
  part->plan_variant = whole.plan_variant;
  Variant bound = part->plan_variant;
  part->bind_batch_terms(bound);
  part->plan = make_attention_plan(part->plan_config, part->query_start_loc, part->seq_lens, bound);
  if (whole.device_arrays != nullptr && !place_on_device(*part, whole.device_arrays->pool()).ok()) return nullptr;
  return part;
}

}  // namespace

MetadataParts& MetadataParts::operator=(const MetadataParts& other) noexcept {
  if (this == &other) return *this;
  const std::lock_guard lock(mutex_);
  for (Slot& slot : slots_) {
    slot.published.store(nullptr);
    slot.owned.reset();
  }
  return *this;
}

const AttentionMetadata* MetadataParts::get(const AttentionMetadata& whole, Part part) const {
  const std::int32_t count = part == Part::kPrefill ? whole.num_prefills : whole.num_decodes;
  const std::int32_t tokens = part == Part::kPrefill ? whole.num_prefill_tokens : whole.num_decode_tokens;
  if (count == 0 || tokens == 0) return nullptr;
  Slot& slot = slots_[static_cast<std::size_t>(part)];
  if (const AttentionMetadata* ready = slot.published.load(std::memory_order_acquire)) return ready;
  const std::lock_guard lock(mutex_);
  if (slot.owned == nullptr) {
    const bool in_front = whole.prefills_first == (part == Part::kPrefill);
    const Requests reqs = in_front ? Requests{0, count} : Requests{whole.num_reqs - count, whole.num_reqs};
    slot.owned = make_part(whole, reqs, part);
    slot.published.store(slot.owned.get(), std::memory_order_release);
  }
  return slot.owned.get();
}

void AttentionMetadata::bind_batch_terms(Variant& variant) const {
  variant.causal = causal;
  if (device_arrays != nullptr) {
    device_arrays->bind(variant);
    return;
  }
  variant.causal_per_seq = causal_per_seq.empty() ? nullptr : causal_per_seq.data();
  variant.mm_prefix_ranges = mm_prefix_ranges.empty() ? nullptr : mm_prefix_ranges.data();
  variant.mm_prefix_max_ranges = mm_prefix_ranges.empty() ? 0 : mm_prefix_max_ranges;
  variant.tree = {};
  if (tree_sizes.empty()) return;
  variant.tree.size = tree_sizes.data();
  variant.tree.mask_offset = tree_mask_offsets.data();
  variant.tree.mask = tree_masks.data();
  if (tree_bias_offsets.empty()) return;
  variant.tree.bias_offset = tree_bias_offsets.data();
  variant.tree.bias = tree_biases.data();
}

const AttentionMetadata* AttentionMetadata::prefill_metadata() const {
  return parts_.get(*this, MetadataParts::Part::kPrefill);
}

const AttentionMetadata* AttentionMetadata::decode_metadata() const {
  return parts_.get(*this, MetadataParts::Part::kDecode);
}

}  // namespace quire
