// make_metadata: checks a batch, copies what layers need of it and plans it.
#include "plan/make_metadata.h"

#include <algorithm>
#include <map>
#include <utility>

#include "plan/batch.h"

namespace quire {
namespace {

bool is_encoder(AttentionType type) { return type == AttentionType::kEncoder || type == AttentionType::kEncoderOnly; }

// The batch as this kind of layer sees it, with the arrays that differ from the caller's.
struct LayerBatch {
  CommonAttentionMetadata common;
  BatchLimits limits;
  std::vector<std::int32_t> seq_lens;
  std::vector<const TokenTree*> trees;  // [num_reqs] or empty
};

std::int32_t largest(std::span<const std::int32_t> values) {
  return values.empty() ? 0 : std::max(*std::max_element(values.begin(), values.end()), 0);
}

// Replaces seq_lens by what the attention type attends to, and by 1 for graph capture.
Status take_lengths(const MetadataOptions& options, LayerBatch& batch) {
  CommonAttentionMetadata& common = batch.common;
  if (is_encoder(options.attn_type)) {
    for (std::int32_t req = 0; req < common.num_reqs; ++req) batch.seq_lens.push_back(query_len_of(common, req));
    common.block_table_tensor = {};
    common.slot_mapping = {};
  } else if (options.attn_type == AttentionType::kEncoderDecoder) {
    if (common.encoder_seq_lens_cpu.size() != static_cast<std::size_t>(common.num_reqs)) {
      return invalid_argument("encoder_seq_lens: want " + std::to_string(common.num_reqs) +
                              " entries for cross attention, got " +
                              std::to_string(common.encoder_seq_lens_cpu.size()));
    }
    batch.seq_lens.assign(common.encoder_seq_lens_cpu.begin(), common.encoder_seq_lens_cpu.end());
    batch.limits.context = ContextRule::kUnchecked;
  } else if (options.lengths == LengthUse::kGraphCapture) {
    batch.seq_lens.assign(static_cast<std::size_t>(common.num_reqs), 1);
    batch.limits.context = ContextRule::kUnchecked;
  } else if (options.lengths == LengthUse::kLongest) {
    const std::int64_t room = common.block_table_tensor.size(1) * std::max(options.limits.block_size, 1);
    const auto longest = static_cast<std::int32_t>(std::min<std::int64_t>(common.max_seq_len, room));
    batch.seq_lens.assign(static_cast<std::size_t>(common.num_reqs), longest);
    batch.limits.context = ContextRule::kUnchecked;
  } else {
    return {};
  }
  common.seq_lens_cpu = batch.seq_lens;
  common.max_seq_len = largest(batch.seq_lens);
  return {};
}

// Decides which tree each request carries.
Status take_trees(const MetadataOptions& options, LayerBatch& batch) {
  CommonAttentionMetadata& common = batch.common;
  const auto given = common.trees;
  common.trees = {};
  const bool by_request = !given.empty();
  if (options.tree_use == TreeUse::kNone || (!by_request && options.tree == nullptr)) return {};
  if (by_request && given.size() != static_cast<std::size_t>(common.num_reqs)) {
    return invalid_argument("trees: want " + std::to_string(common.num_reqs) + " entries, got " +
                            std::to_string(given.size()));
  }
  const bool drafts = options.tree_use == TreeUse::kDraft;
  if (drafts && !by_request && common.max_query_len >= options.tree->size()) {
    return invalid_argument("max_query_len: want at most the tree's " + std::to_string(options.tree->size() - 1) +
                            " drafts, got " + std::to_string(common.max_query_len));
  }
  const std::int32_t carrying_len = drafts ? common.max_query_len : (by_request ? 0 : options.tree->size());
  for (std::int32_t req = 0; req < common.num_reqs; ++req) {
    const std::int32_t query_len = query_len_of(common, req);
    const TokenTree* tree = by_request ? given[static_cast<std::size_t>(req)] : options.tree;
    if (!by_request && (query_len != carrying_len || query_len == 0)) tree = nullptr;
    if (tree != nullptr && drafts && query_len >= tree->size()) {
      return invalid_argument(at_request("trees", req) + "want a tree of more than its query_len " +
                              std::to_string(query_len) + " nodes to draft, got " + std::to_string(tree->size()));
    }
    batch.trees.push_back(tree);
  }
  if (!drafts) common.trees = batch.trees;
  return {};
}

// Requests that cannot be drafted any further have seq_len 1 instead of a context.
Status check_draft_lengths(const CommonAttentionMetadata& common) {
  for (std::int32_t req = 0; req < common.num_reqs; ++req) {
    const std::int32_t seq_len = seq_len_of(common, req);
    if (seq_len >= query_len_of(common, req) || seq_len == 1) continue;
    return invalid_argument(at_request("seq_lens", req) + "want at least its query_len " +
                            std::to_string(query_len_of(common, req)) +
                            ", or 1 for a request that is not drafted, got " + std::to_string(seq_len));
  }
  return {};
}

Status check_batch(const MetadataOptions& options, LayerBatch& batch) {
  CommonAttentionMetadata& common = batch.common;
  if (options.tree_use == TreeUse::kDraft && batch.limits.context == ContextRule::kNonNegative) {
    QUIRE_RETURN_IF_ERROR(check_draft_lengths(common));
    batch.limits.context = ContextRule::kUnchecked;
  }
  if (!is_encoder(options.attn_type) && !common.block_table_tensor && largest(common.seq_lens_cpu) > 0) {
    return invalid_argument("block_table: want a table of [num_reqs, blocks], got none");
  }
  if (options.attn_type != AttentionType::kEncoderDecoder) return validate_batch(common, batch.limits);
  // The slots of cross attention are those of the encoder's tokens, of which there may be any number.
  const TensorView slots = std::exchange(common.slot_mapping, TensorView{});
  QUIRE_RETURN_IF_ERROR(validate_batch(common, batch.limits));
  common.slot_mapping = slots;
  if (!slots) return {};
  if (batch.limits.block_size < 1 || slots.rank != 1) {
    return invalid_argument("slot_mapping.shape: want [tokens] and a block size of at least 1, got " +
                            shape_string(slots) + " and " + std::to_string(batch.limits.block_size));
  }
  return check_slots(common, batch.limits, slots.size(0));
}

bool is_prefill(const CommonAttentionMetadata& common, std::int32_t req, std::int32_t threshold) {
  if (!common.is_prefilling.empty()) return common.is_prefilling[static_cast<std::size_t>(req)] != 0;
  const std::int32_t query_len = query_len_of(common, req);
  return query_len > threshold || (query_len > 0 && seq_len_of(common, req) == query_len);
}

Status split_prefills_first(const CommonAttentionMetadata& common, std::int32_t threshold, AttentionMetadata& out) {
  std::int32_t first_decode = 0;
  while (first_decode < common.num_reqs && is_prefill(common, first_decode, threshold)) ++first_decode;
  for (std::int32_t req = first_decode; req < common.num_reqs; ++req) {
    if (!is_prefill(common, req, threshold)) continue;
    return invalid_argument(at_request("batch order", req) + "want prefills in front, got one of " +
                            std::to_string(query_len_of(common, req)) + " tokens behind the decode request " +
                            std::to_string(first_decode));
  }
  out.prefills_first = true;
  out.num_prefills = first_decode;
  out.num_decodes = common.num_reqs - first_decode;
  out.num_prefill_tokens = common.query_start_loc_cpu[static_cast<std::size_t>(first_decode)];
  out.num_decode_tokens = common.num_actual_tokens - out.num_prefill_tokens;
  return {};
}

// `original` has the caller's lengths, which say what is a fresh prompt also when a graph is captured.
Status take_order(const CommonAttentionMetadata& original, const MetadataOptions& options, AttentionMetadata& out) {
  if (options.order == BatchOrder::kUnsplit) return {};
  if (options.order == BatchOrder::kPrefillsFirst) {
    return split_prefills_first(original, options.decode_threshold, out);
  }
  QUIRE_ASSIGN_OR_RETURN(const DecodePrefillSplit split,
                         split_decodes_and_prefills(original, options.decode_threshold));
  out.num_decodes = split.num_decodes;
  out.num_prefills = split.num_prefills;
  out.num_decode_tokens = split.num_decode_tokens;
  out.num_prefill_tokens = split.num_prefill_tokens;
  return {};
}

// Bit masks (and biases) of all requests; requests with the same tree share one.
void copy_trees(const LayerBatch& batch, const MetadataOptions& options, AttentionMetadata& out) {
  const bool any = std::any_of(batch.trees.begin(), batch.trees.end(), [](const TokenTree* tree) { return tree; });
  if (!any) return;
  const std::int32_t first_node = options.tree_use == TreeUse::kDraft ? 1 : 0;
  const bool with_bias = options.tree_form == TreeForm::kMaskAndBias;
  std::map<std::pair<const TokenTree*, std::int32_t>, std::pair<std::int64_t, std::int64_t>> offsets;
  for (std::int32_t req = 0; req < batch.common.num_reqs; ++req) {
    const TokenTree* tree = batch.trees[static_cast<std::size_t>(req)];
    const std::int32_t size = tree == nullptr ? 0 : query_len_of(batch.common, req);
    const auto [found, is_new] =
        offsets.try_emplace({size == 0 ? nullptr : tree, size}, static_cast<std::int64_t>(out.tree_masks.size()),
                            static_cast<std::int64_t>(out.tree_biases.size()));
    out.tree_sizes.push_back(size);
    out.tree_mask_offsets.push_back(found->second.first);
    if (with_bias) out.tree_bias_offsets.push_back(found->second.second);
    if (!is_new || size == 0) continue;
    const std::vector<std::uint64_t> mask = tree->submask(first_node, size);
    out.tree_masks.insert(out.tree_masks.end(), mask.begin(), mask.end());
    if (!with_bias) continue;
    const std::vector<float> bias = tree->bias();
    const std::size_t width = static_cast<std::size_t>(tree->size());
    for (std::int32_t row = first_node; row < first_node + size; ++row) {
      const auto begin = bias.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(row) * width) + first_node;
      out.tree_biases.insert(out.tree_biases.end(), begin, begin + size);
    }
  }
}

// Pads each request's ranges with (0, 0); ranges that mean nothing are dropped.
void copy_mm_ranges(const CommonAttentionMetadata& common, AttentionMetadata& out) {
  if (common.mm_range_start.empty()) return;
  const auto counts = [](MmRange range) { return range.start < range.end; };
  const auto ranges_of = [&](std::size_t req) {
    const auto begin = static_cast<std::size_t>(common.mm_range_start[req]);
    return common.mm_ranges.subspan(begin, static_cast<std::size_t>(common.mm_range_start[req + 1]) - begin);
  };
  const std::size_t num_reqs = static_cast<std::size_t>(common.num_reqs);
  std::ptrdiff_t most = 0;
  for (std::size_t req = 0; req < num_reqs; ++req) {
    const auto ranges = ranges_of(req);
    most = std::max(most, std::count_if(ranges.begin(), ranges.end(), counts));
  }
  if (most == 0) return;
  const std::size_t width = static_cast<std::size_t>(most) * 2;
  out.mm_prefix_max_ranges = static_cast<std::int32_t>(most);
  out.mm_prefix_ranges.assign(num_reqs * width, 0);
  for (std::size_t req = 0; req < num_reqs; ++req) {
    std::int32_t* to = out.mm_prefix_ranges.data() + req * width;
    for (MmRange range : ranges_of(req)) {
      if (!counts(range)) continue;
      *to++ = range.start;
      *to++ = range.end;
    }
  }
}

void copy_arrays(const LayerBatch& batch, const MetadataOptions& options, AttentionMetadata& out) {
  const CommonAttentionMetadata& common = batch.common;
  out.num_reqs = common.num_reqs;
  out.num_actual_tokens = common.num_actual_tokens;
  out.max_query_len = common.max_query_len;
  out.max_seq_len = common.max_seq_len;
  out.query_start_loc.assign(common.query_start_loc_cpu.begin(), common.query_start_loc_cpu.end());
  out.seq_lens.assign(common.seq_lens_cpu.begin(), common.seq_lens_cpu.end());
  if (!is_on_host(common.query_start_loc)) out.query_start_loc_device = common.query_start_loc;
  // Encoders and cross attention count other keys than the caller's seq_lens.
  const bool own_lengths = options.attn_type != AttentionType::kDecoder;
  if (!is_on_host(common.seq_lens) && !own_lengths) out.seq_lens_device = common.seq_lens;
  out.block_table = common.block_table_tensor;
  out.slot_mapping = common.slot_mapping;
  out.logits_indices_padded.assign(common.logits_indices_padded.begin(), common.logits_indices_padded.end());
  out.num_logits_indices = common.num_logits_indices;
  out.num_blocks = options.limits.num_blocks;
  out.block_size = options.limits.block_size;
  out.causal = options.attn_type == AttentionType::kDecoder && common.causal;
  if (options.attn_type == AttentionType::kDecoder) {
    out.causal_per_seq.assign(common.causal_per_seq.begin(), common.causal_per_seq.end());
  }
}

// The scalar terms alone: pointers would dangle once the metadata moves.
Variant without_pointers(Variant variant) {
  variant.alibi_slopes = nullptr;
  variant.sinks = nullptr;
  variant.causal_per_seq = nullptr;
  variant.mm_prefix_ranges = nullptr;
  variant.mm_prefix_max_ranges = 0;
  variant.tree = {};
  return variant;
}

Status check_positive(const char* name, std::int64_t value) {
  if (value >= 1) return {};
  return invalid_argument(std::string(name) + ": want at least 1, got " + std::to_string(value));
}

}  // namespace

Result<MetadataOptions> metadata_options(const BuilderConfig& config, std::int32_t num_streams) {
  QUIRE_RETURN_IF_ERROR(check_positive("num_heads", config.num_heads));
  QUIRE_RETURN_IF_ERROR(check_positive("num_kv_heads", config.num_kv_heads));
  QUIRE_RETURN_IF_ERROR(check_positive("num_streams", num_streams));
  if (config.num_heads % config.num_kv_heads != 0) {
    return invalid_argument("num_heads: want a multiple of num_kv_heads " + std::to_string(config.num_kv_heads) +
                            ", got " + std::to_string(config.num_heads));
  }
  if (config.chunk < 0 || config.chunk_lookback < 0) {
    return invalid_argument("chunk and chunk_lookback: want at least 0, got " + std::to_string(config.chunk) + " and " +
                            std::to_string(config.chunk_lookback));
  }
  MetadataOptions options;
  options.attn_type = config.attn_type;
  options.limits = {.num_blocks = config.num_blocks, .block_size = config.block_size};
  options.plan.rows_per_token = config.num_heads / config.num_kv_heads * num_streams;
  if (config.sliding_window && config.attn_type != AttentionType::kEncoderDecoder) {
    QUIRE_RETURN_IF_ERROR(check_positive("sliding_window", *config.sliding_window));
    options.variant.window_left = *config.sliding_window - 1;
    options.variant.window_right = is_encoder(config.attn_type) ? *config.sliding_window - 1 : 0;
  }
  options.variant.chunk = config.chunk;
  options.variant.chunk_lookback = config.chunk_lookback;
  if (config.tree) {
    options.tree = &*config.tree;
    options.tree_use = TreeUse::kVerify;
  }
  return options;
}

Result<AttentionMetadata> make_metadata(const CommonAttentionMetadata& common, const MetadataOptions& options) {
  QUIRE_RETURN_IF_ERROR(check_host_arrays(common));
  LayerBatch batch{.common = common, .limits = options.limits, .seq_lens = {}, .trees = {}};
  QUIRE_RETURN_IF_ERROR(take_lengths(options, batch));
  QUIRE_RETURN_IF_ERROR(take_trees(options, batch));
  QUIRE_RETURN_IF_ERROR(check_batch(options, batch));
  AttentionMetadata out;
  copy_arrays(batch, options, out);
  copy_trees(batch, options, out);
  copy_mm_ranges(batch.common, out);
  QUIRE_RETURN_IF_ERROR(take_order(common, options, out));
  out.plan_config = options.plan;
  out.plan_variant = without_pointers(options.variant);
  out.plan_variant.causal = out.causal;
  Variant bound = out.plan_variant;
  out.bind_batch_terms(bound);
  out.plan = make_attention_plan(out.plan_config, out.query_start_loc, out.seq_lens, bound);
  return out;
}

}  // namespace quire
