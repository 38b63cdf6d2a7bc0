// Batches made out of batches: chunked local attention as virtual sequences, and KV-sharing fast prefill.
#include <algorithm>

#include "core/checked.h"
#include "plan/batch.h"

namespace quire {
namespace {

// Points the common metadata of a derived batch at its own arrays.
void view_own_arrays(DerivedBatch& batch) {
  CommonAttentionMetadata& common = batch.common;
  common.num_reqs = static_cast<std::int32_t>(batch.seq_lens.size());
  common.query_start_loc_cpu = batch.query_start_loc;
  common.seq_lens_cpu = batch.seq_lens;
  common.num_computed_tokens_cpu = batch.num_computed_tokens;
  common.query_start_loc = {};
  common.seq_lens = {};
  common.max_query_len = 0;
  common.max_seq_len = 0;
  for (std::int32_t req = 0; req < common.num_reqs; ++req) {
    common.max_query_len = std::max(common.max_query_len, query_len_of(common, req));
    common.max_seq_len = std::max(common.max_seq_len, seq_len_of(common, req));
  }
}

Status check_local_attention(std::int32_t chunk, const CommonAttentionMetadata& common, std::int32_t block_size) {
  if (block_size < 1) return invalid_argument("block_size: want at least 1, got " + std::to_string(block_size));
  if (chunk < 1 || chunk % block_size != 0) {
    return invalid_argument("chunk: want a positive multiple of the block size " + std::to_string(block_size) +
                            ", got " + std::to_string(chunk));
  }
  QUIRE_RETURN_IF_ERROR(check_host_arrays(common));
  if (common.num_reqs > 0) QUIRE_RETURN_IF_ERROR(check_host_block_table(common));
  if (!common.trees.empty() || !common.mm_ranges.empty() || !common.causal_per_seq.empty()) {
    return unsupported(
        "virtual batches: want a batch without trees, mm_ranges and causal_per_seq, got one of them; use the chunk "
        "term instead");
  }
  for (std::int32_t req = 0; req < common.num_reqs; ++req) {
    const std::int32_t query_len = query_len_of(common, req);
    const std::int32_t seq_len = seq_len_of(common, req);
    if (seq_len < query_len) {
      return invalid_argument(at_request("seq_lens", req) + "want at least its query_len " + std::to_string(query_len) +
                              ", got " + std::to_string(seq_len));
    }
    const std::int64_t needed = ceil_div(seq_len, block_size);
    if (needed > common.block_table_tensor.size(1)) {
      return out_of_range(at_request("block_table", req) + "want " + std::to_string(needed) + " blocks, got " +
                          std::to_string(common.block_table_tensor.size(1)));
    }
  }
  return {};
}

class VirtualSequences {
 public:
  VirtualSequences(std::int32_t chunk, const CommonAttentionMetadata& common, std::int32_t block_size)
      : chunk_(chunk),
        block_size_(block_size),
        table_(common.block_table_tensor),
        width_(std::min<std::int64_t>(chunk / block_size, table_.rank == 2 ? table_.size(1) : 0)) {
    batch_->common = common;
    batch_->query_start_loc.push_back(0);
  }

  void add_request(const CommonAttentionMetadata& common, std::int32_t req) {
    const std::int64_t query_len = query_len_of(common, req);
    const std::int64_t seq_len = seq_len_of(common, req);
    const std::int64_t context_len = seq_len - query_len;
    const std::int64_t first = std::min(chunk_ - context_len % chunk_, query_len);
    const std::int64_t count = 1 + ceil_div(query_len - first, chunk_);
    const std::int64_t last_chunk = seq_len == 0 ? 0 : (seq_len - 1) / chunk_;
    std::int64_t rows_left = query_len;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t rows = i == 0 ? first : std::min<std::int64_t>(chunk_, rows_left);
      const std::int64_t kv_start = (last_chunk - (count - 1 - i)) * chunk_;
      const std::int64_t keys = std::min<std::int64_t>(chunk_, seq_len - kv_start);
      rows_left -= rows;
      add_sequence(req, rows, kv_start, keys);
    }
  }

  std::unique_ptr<DerivedBatch> finish() {
    view_own_arrays(*batch_);
    const std::int64_t rows = batch_->common.num_reqs;
    TensorView& table = batch_->common.block_table_tensor;
    table = TensorView();
    table.data = batch_->block_table.data();
    table.dtype = DType::kInt32;
    table.rank = 2;
    table.shape = {rows, width_};
    table.strides = {width_, 1};
    batch_->common.causal = true;
    batch_->common.is_prefilling = {};
    batch_->common.encoder_seq_lens_cpu = {};
    batch_->common.logits_indices_padded = {};
    batch_->common.num_logits_indices = 0;
    return std::move(batch_);
  }

 private:
  void add_sequence(std::int32_t req, std::int64_t rows, std::int64_t kv_start, std::int64_t keys) {
    batch_->query_start_loc.push_back(batch_->query_start_loc.back() + static_cast<std::int32_t>(rows));
    batch_->seq_lens.push_back(static_cast<std::int32_t>(keys));
    batch_->num_computed_tokens.push_back(static_cast<std::int32_t>(keys - rows));
    const std::int32_t* blocks = table_.as<const std::int32_t>() + req * table_.stride(0);
    const std::int64_t first_block = kv_start / block_size_;
    for (std::int64_t i = 0; i < width_; ++i) {
      batch_->block_table.push_back(blocks[std::min(first_block + i, table_.size(1) - 1)]);
    }
  }

  std::int64_t chunk_;
  std::int64_t block_size_;
  TensorView table_;
  std::int64_t width_;  // blocks a virtual sequence
  std::unique_ptr<DerivedBatch> batch_ = std::make_unique<DerivedBatch>();
};

// The number of wanted rows of each request.
Result<std::vector<std::int32_t>> count_wanted_rows(const CommonAttentionMetadata& common,
                                                    std::span<const std::int32_t> wanted) {
  std::vector<std::int32_t> counts(static_cast<std::size_t>(common.num_reqs), 0);
  std::size_t next = 0;
  for (std::int32_t req = 0; req < common.num_reqs; ++req) {
    const std::int32_t end = common.query_start_loc_cpu[static_cast<std::size_t>(req) + 1];
    const std::size_t first = next;
    while (next < wanted.size() && wanted[next] < end) ++next;
    const std::int32_t count = static_cast<std::int32_t>(next - first);
    for (std::size_t i = first; i < next; ++i) {
      const std::int32_t expected = end - static_cast<std::int32_t>(next - i);
      if (wanted[i] == expected && count <= query_len_of(common, req)) continue;
      return invalid_argument(at_request("logits_indices", req) + "want the last rows of the request in order, so " +
                              std::to_string(expected) + " at index " + std::to_string(i) + ", got " +
                              std::to_string(wanted[i]));
    }
    counts[static_cast<std::size_t>(req)] = count;
  }
  if (next < wanted.size()) {
    return out_of_range("logits_indices: index " + std::to_string(next) + ": want a token below " +
                        std::to_string(common.query_start_loc_cpu.back()) + ", got " + std::to_string(wanted[next]));
  }
  return counts;
}

}  // namespace

Result<std::unique_ptr<DerivedBatch>> make_local_attention_virtual_batches(std::int32_t chunk,
                                                                           const CommonAttentionMetadata& common,
                                                                           std::int32_t block_size) {
  QUIRE_RETURN_IF_ERROR(check_local_attention(chunk, common, block_size));
  VirtualSequences sequences(chunk, common, block_size);
  for (std::int32_t req = 0; req < common.num_reqs; ++req) sequences.add_request(common, req);
  return sequences.finish();
}

Result<std::unique_ptr<DerivedBatch>> make_kv_sharing_fast_prefill_batch(const CommonAttentionMetadata& common) {
  QUIRE_RETURN_IF_ERROR(check_host_arrays(common));
  auto batch = std::make_unique<DerivedBatch>();
  batch->common = common;
  if (common.max_query_len == 1) return batch;
  if (common.num_logits_indices < 1 ||
      common.logits_indices_padded.size() < static_cast<std::size_t>(common.num_logits_indices)) {
    return invalid_argument("logits_indices: want at least one and no more than the " +
                            std::to_string(common.logits_indices_padded.size()) + " given, got num_logits_indices " +
                            std::to_string(common.num_logits_indices));
  }
  const auto wanted = common.logits_indices_padded.first(static_cast<std::size_t>(common.num_logits_indices));
  QUIRE_ASSIGN_OR_RETURN(const std::vector<std::int32_t> counts, count_wanted_rows(common, wanted));
  batch->seq_lens.assign(common.seq_lens_cpu.begin(), common.seq_lens_cpu.end());
  batch->query_start_loc.push_back(0);
  for (std::size_t req = 0; req < counts.size(); ++req) {
    batch->query_start_loc.push_back(batch->query_start_loc.back() + counts[req]);
    batch->num_computed_tokens.push_back(batch->seq_lens[req] - counts[req]);
  }
  view_own_arrays(*batch);
  // The lengths did not change, so their device copy holds.
  batch->common.seq_lens = common.seq_lens;
  batch->common.max_seq_len = common.max_seq_len;
  batch->common.num_actual_tokens = batch->query_start_loc.back();
  batch->common.causal = true;
  return batch;
}

}  // namespace quire
