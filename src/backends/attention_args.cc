// Checks of prepared attention arguments: what could make a kernel read or write where it must not.
#include "backends/attention_args.h"

#include <cmath>
#include <string>

#include "core/checked.h"

namespace quire::backends {
namespace {

using std::to_string;

Status wrong(std::string_view name, std::string_view want, const std::string& got) {
  return invalid_argument("args." + std::string(name) + ": want " + std::string(want) + ", got " + got);
}

Status check_pointer(std::string_view name, const void* data, std::int64_t alignment) {
  if (data == nullptr) return wrong(name, "a pointer", "null");
  const auto off = reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(alignment);
  if (off != 0) return wrong(name, "an address aligned to " + to_string(alignment), "one off by " + to_string(off));
  return {};
}

Status check_strides(std::string_view name, std::initializer_list<std::int64_t> strides) {
  for (const std::int64_t stride : strides) {
    if (stride < 0) return wrong(name, "strides >= 0", to_string(stride));
  }
  return {};
}

Status check_query(const AttentionArgs& args) {
  if (!is_activation(args.query_dtype) && args.query_dtype != DType::kFloat8E4M3) {
    return wrong("query_dtype", "float32, float16, bfloat16 or float8_e4m3fn",
                 std::string(dtype_name(args.query_dtype)));
  }
  QUIRE_RETURN_IF_ERROR(check_pointer("query", args.query, dtype_bytes(args.query_dtype)));
  QUIRE_RETURN_IF_ERROR(check_strides("query strides", {args.query_token_stride, args.query_head_stride}));
  if (!std::isfinite(args.query_scale)) return wrong("query_scale", "a finite number", to_string(args.query_scale));
  return {};
}

Status check_output_quantisation(const AttentionArgs& args) {
  const bool scaled = args.output_scale != 0.0f;
  const bool block_scaled = args.output_block_scale != nullptr;
  if (scaled && !(args.output_scale > 0.0f && std::isfinite(args.output_scale))) {
    return wrong("output_scale", "a finite number > 0, or 0 for none", to_string(args.output_scale));
  }
  if (scaled && block_scaled) return wrong("output_scale", "one scale or block scales", "both");
  if (block_scaled) {
    QUIRE_RETURN_IF_ERROR(check_pointer("output_block_scale", args.output_block_scale, sizeof(float)));
    QUIRE_RETURN_IF_ERROR(check_strides("output_block_scale_stride", {args.output_block_scale_stride}));
  }
  if (args.output_dtype == DType::kFloat8E4M3 && !scaled && !block_scaled) {
    return wrong("output_dtype", "output_scale or output_block_scale with float8_e4m3fn", "neither");
  }
  if (args.output_dtype != DType::kFloat8E4M3 && (scaled || block_scaled)) {
    return wrong("output_dtype", "float8_e4m3fn with an output scale", std::string(dtype_name(args.output_dtype)));
  }
  return {};
}

Status check_output(const AttentionArgs& args) {
  if (!is_activation(args.output_dtype) && args.output_dtype != DType::kFloat8E4M3) {
    return wrong("output_dtype", "float32, float16, bfloat16 or float8_e4m3fn",
                 std::string(dtype_name(args.output_dtype)));
  }
  QUIRE_RETURN_IF_ERROR(check_pointer("output", args.output, dtype_bytes(args.output_dtype)));
  QUIRE_RETURN_IF_ERROR(check_strides("output strides", {args.output_token_stride, args.output_head_stride}));
  if (args.kv.num_streams == 2 && args.output_head_stride != args.kv.head_size_v) {
    return wrong("output_head_stride", to_string(args.kv.head_size_v) + " (pair rows are contiguous)",
                 to_string(args.output_head_stride));
  }
  QUIRE_RETURN_IF_ERROR(check_output_quantisation(args));
  if (args.lse == nullptr) return {};
  QUIRE_RETURN_IF_ERROR(check_pointer("lse", args.lse, sizeof(float)));
  return check_strides("lse_head_stride", {args.lse_head_stride});
}

Status check_rows(std::string_view name, const KVSource& kv, const KVRows& rows) {
  QUIRE_RETURN_IF_ERROR(check_pointer(name, rows.data, dtype_bytes(kv.dtype)));
  QUIRE_RETURN_IF_ERROR(check_strides(name, {rows.page_stride, rows.token_stride, rows.head_stride}));
  if (!std::isfinite(rows.tensor_scale)) {
    return wrong(std::string(name) + ".tensor_scale", "a finite number", to_string(rows.tensor_scale));
  }
  if (rows.scales == nullptr) return {};
  QUIRE_RETURN_IF_ERROR(check_pointer(name, rows.scales, sizeof(float)));
  return check_strides(name, {rows.scale_page_stride, rows.scale_token_stride, rows.scale_head_stride});
}

Status check_kv(const AttentionArgs& args) {
  const KVSource& kv = args.kv;
  if (!is_activation(kv.dtype) && !is_float8(kv.dtype) && kv.dtype != DType::kInt8) {
    return wrong("kv.dtype", "an activation type, float8 or int8", std::string(dtype_name(kv.dtype)));
  }
  for (int stream = 0; stream < kv.num_streams; ++stream) {
    QUIRE_RETURN_IF_ERROR(check_rows("kv.key", kv, kv.key[stream]));
    QUIRE_RETURN_IF_ERROR(check_rows("kv.value", kv, kv.value[stream]));
  }
  if (kv.block_table == nullptr && kv.kv_start == nullptr) {
    return wrong("kv.kv_start", "starts, as there is no block table", "null");
  }
  return {};
}

Status check_tensors(const AttentionArgs& args) {
  QUIRE_RETURN_IF_ERROR(check_query(args));
  QUIRE_RETURN_IF_ERROR(check_output(args));
  return check_kv(args);
}

std::string at_seq(std::string_view name, std::int32_t seq) { return std::string(name) + "[" + to_string(seq) + "]"; }

Status check_lengths(const AttentionArgs& args) {
  if (args.num_seqs == 0) return {};
  QUIRE_RETURN_IF_ERROR(check_pointer("query_start_loc", args.query_start_loc, sizeof(std::int32_t)));
  QUIRE_RETURN_IF_ERROR(check_pointer("seq_lens", args.seq_lens, sizeof(std::int32_t)));
  if (args.query_start_loc[0] != 0) return wrong("query_start_loc[0]", "0", to_string(args.query_start_loc[0]));
  for (std::int32_t seq = 0; seq < args.num_seqs; ++seq) {
    if (args.query_start_loc[seq + 1] < args.query_start_loc[seq]) {
      return wrong(at_seq("query_start_loc", seq + 1), ">= " + to_string(args.query_start_loc[seq]),
                   to_string(args.query_start_loc[seq + 1]));
    }
    if (args.seq_lens[seq] < 0) return wrong(at_seq("seq_lens", seq), ">= 0", to_string(args.seq_lens[seq]));
  }
  const std::int32_t last = args.query_start_loc[args.num_seqs];
  if (last != args.num_tokens) {
    return wrong(at_seq("query_start_loc", args.num_seqs), to_string(args.num_tokens) + " (num_tokens)",
                 to_string(last));
  }
  return {};
}

// Block ids of every page that a sequence's keys are in.
Status check_block_table(const AttentionArgs& args) {
  const KVSource& kv = args.kv;
  if (kv.block_table == nullptr) return {};
  if (kv.block_size <= 0) return wrong("kv.block_size", "> 0", to_string(kv.block_size));
  QUIRE_RETURN_IF_ERROR(check_strides("kv.block_table_stride", {kv.block_table_stride}));
  for (std::int32_t seq = 0; seq < args.num_seqs; ++seq) {
    const std::int64_t blocks = ceil_div(args.seq_lens[seq], kv.block_size);
    if (args.num_seqs > 1 && blocks > kv.block_table_stride) {
      return wrong(at_seq("seq_lens", seq),
                   "at most " + to_string(kv.block_table_stride * kv.block_size) + " keys (a block table row)",
                   to_string(args.seq_lens[seq]));
    }
    const std::int32_t* row = kv.block_table + seq * kv.block_table_stride;
    for (std::int64_t block = 0; block < blocks; ++block) {
      if (row[block] >= 0 && row[block] < kv.num_blocks) continue;
      return out_of_range("args." + at_seq("kv.block_table", seq) + "[" + to_string(block) + "]: want 0 <= id < " +
                          to_string(kv.num_blocks) + ", got " + to_string(row[block]));
    }
  }
  return {};
}

Status check_tree(const TreeTerms& tree) {
  if (tree.size == nullptr) return {};
  QUIRE_RETURN_IF_ERROR(check_pointer("variant.tree.mask", tree.mask, sizeof(std::uint64_t)));
  QUIRE_RETURN_IF_ERROR(check_pointer("variant.tree.mask_offset", tree.mask_offset, sizeof(std::int64_t)));
  if (tree.bias == nullptr) return {};
  return check_pointer("variant.tree.bias_offset", tree.bias_offset, sizeof(std::int64_t));
}

Status check_variant(const Variant& variant) {
  if (!std::isfinite(variant.scale)) return wrong("variant.scale", "a finite number", to_string(variant.scale));
  if (!(variant.softcap >= 0.0f) || !std::isfinite(variant.softcap)) {
    return wrong("variant.softcap", "a finite number >= 0", to_string(variant.softcap));
  }
  if (variant.chunk < 0) return wrong("variant.chunk", ">= 0", to_string(variant.chunk));
  if (variant.chunk_lookback < 0) return wrong("variant.chunk_lookback", ">= 0", to_string(variant.chunk_lookback));
  if (variant.alibi != AlibiKind::kNone) {
    QUIRE_RETURN_IF_ERROR(check_pointer("variant.alibi_slopes", variant.alibi_slopes, sizeof(float)));
  }
  if (variant.mm_prefix_ranges != nullptr && variant.mm_prefix_max_ranges < 0) {
    return wrong("variant.mm_prefix_max_ranges", ">= 0", to_string(variant.mm_prefix_max_ranges));
  }
  return check_tree(variant.tree);
}

// Rows [begin, begin + count) of sequence `seq`.
Status check_item_rows(const AttentionArgs& args, std::int32_t seq, std::int64_t begin, std::int64_t count) {
  const bool known = seq >= 0 && seq < args.num_seqs;
  const std::int64_t rows = known ? args.query_start_loc[seq + 1] - args.query_start_loc[seq] : 0;
  if (known && begin >= 0 && count >= 0 && begin + count <= rows) return {};
  return invalid_argument("plan: want rows inside the batch's sequences, got rows [" + to_string(begin) + ", " +
                          to_string(begin + count) + ") of sequence " + to_string(seq) + " with " + to_string(rows));
}

}  // namespace

Status check_counts(const AttentionArgs& args) {
  const KVSource& kv = args.kv;
  if (args.num_seqs < 0) return wrong("num_seqs", ">= 0", to_string(args.num_seqs));
  if (args.num_tokens < 0) return wrong("num_tokens", ">= 0", to_string(args.num_tokens));
  if (kv.num_streams != 1 && kv.num_streams != 2) return wrong("kv.num_streams", "1 or 2", to_string(kv.num_streams));
  if (kv.num_kv_heads <= 0) return wrong("kv.num_kv_heads", "> 0", to_string(kv.num_kv_heads));
  const std::int64_t heads = static_cast<std::int64_t>(kv.num_kv_heads) * kv.num_streams;
  if (args.num_q_heads <= 0 || args.num_q_heads % heads != 0) {
    return wrong("num_q_heads", "a positive multiple of " + to_string(heads) + " (kv heads x streams)",
                 to_string(args.num_q_heads));
  }
  if (kv.head_size <= 0) return wrong("kv.head_size", "> 0", to_string(kv.head_size));
  if (kv.head_size_v <= 0) return wrong("kv.head_size_v", "> 0", to_string(kv.head_size_v));
  return {};
}

Status check_batch(const AttentionArgs& args) {
  QUIRE_RETURN_IF_ERROR(check_counts(args));
  QUIRE_RETURN_IF_ERROR(check_variant(args.variant));
  QUIRE_RETURN_IF_ERROR(check_lengths(args));
  return check_block_table(args);
}

Status check_attention_args(const AttentionArgs& args) {
  QUIRE_RETURN_IF_ERROR(check_batch(args));
  return args.num_tokens > 0 ? check_tensors(args) : Status{};
}

Status check_device_args(const AttentionArgs& args) {
  QUIRE_RETURN_IF_ERROR(check_counts(args));
  QUIRE_RETURN_IF_ERROR(check_variant(args.variant));
  if (args.kv.block_size <= 0) return wrong("kv.block_size", "> 0", to_string(args.kv.block_size));
  if (args.num_seqs == 0 || args.num_tokens == 0) return {};
  QUIRE_RETURN_IF_ERROR(check_pointer("query_start_loc", args.query_start_loc, sizeof(std::int32_t)));
  QUIRE_RETURN_IF_ERROR(check_pointer("seq_lens", args.seq_lens, sizeof(std::int32_t)));
  QUIRE_RETURN_IF_ERROR(check_strides("kv.block_table_stride", {args.kv.block_table_stride}));
  return check_tensors(args);
}

Status check_plan(const AttentionArgs& args, const AttentionPlan& plan) {
  for (const WorkItem& item : plan.items) {
    QUIRE_RETURN_IF_ERROR(check_item_rows(args, item.seq, item.token_begin, item.token_count));
    if (item.kv_begin < 0 || item.kv_end > args.seq_lens[item.seq] || item.kv_begin % kSplitTokens != 0) {
      return invalid_argument("plan: want keys inside [0, " + to_string(args.seq_lens[item.seq]) + ") of sequence " +
                              to_string(item.seq) + ", got [" + to_string(item.kv_begin) + ", " +
                              to_string(item.kv_end) + ")");
    }
    if (item.partial >= plan.num_partials || (item.partial >= 0 && item.token_count > plan.max_partial_tokens)) {
      return invalid_argument("plan: want a partial slot below " + to_string(plan.num_partials) + " of at most " +
                              to_string(plan.max_partial_tokens) + " tokens, got slot " + to_string(item.partial) +
                              " of " + to_string(item.token_count));
    }
  }
  for (const MergeItem& merge : plan.merges) {
    QUIRE_RETURN_IF_ERROR(check_item_rows(args, merge.seq, merge.token_begin, merge.token_count));
    if (merge.first_partial < 0 || merge.num_partials < 0 ||
        merge.first_partial > plan.num_partials - merge.num_partials || merge.token_count > plan.max_partial_tokens) {
      return invalid_argument("plan: want merges of slots below " + to_string(plan.num_partials) + ", got " +
                              to_string(merge.num_partials) + " from slot " + to_string(merge.first_partial));
    }
  }
  return {};
}

}  // namespace quire::backends
