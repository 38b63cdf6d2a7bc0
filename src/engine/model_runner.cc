// Implements ModelRunner.
#include "engine/model_runner.h"

#include <algorithm>
#include <numeric>

namespace quire {
namespace {

template <class T>
TensorView vector_view(std::vector<T>& values, DType dtype, std::int64_t rows, std::int64_t columns) {
  TensorView view;
  view.data = values.data();
  view.dtype = dtype;
  if (columns == 0) {
    view.rank = 1;
    view.shape = {rows};
    view.strides = {1};
  } else {
    view.rank = 2;
    view.shape = {rows, columns};
    view.strides = {columns, 1};
  }
  return view;
}

// One row a sequence, short ones padded with the null block.
void fill_table(std::span<const SequenceRows> sequences, std::span<const std::size_t> order,
                std::span<const BlockId> SequenceRows::*blocks, std::vector<std::int32_t>& table) {
  std::size_t width = 1;
  for (const SequenceRows& one : sequences) width = std::max(width, (one.*blocks).size());
  table.assign(width * sequences.size(), 0);
  for (std::size_t row = 0; row < order.size(); ++row) {
    const std::span<const BlockId> from = sequences[order[row]].*blocks;
    std::copy(from.begin(), from.end(), table.begin() + static_cast<std::ptrdiff_t>(row * width));
  }
}

}  // namespace

std::vector<std::size_t> ModelRunner::order_of(std::span<const SequenceRows> sequences) const {
  std::vector<std::int32_t> scheduled;
  std::vector<std::int32_t> computed;
  for (const SequenceRows& one : sequences) {
    scheduled.push_back(static_cast<std::int32_t>(one.tokens.size()));
    computed.push_back(one.context_len);
  }
  std::vector<std::size_t> order(sequences.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  const ReorderInput input{.num_scheduled_tokens = scheduled,
                           .num_computed_tokens = computed,
                           .decode_threshold = model_->attention().reorder_threshold()};
  for (const auto& [a, b] : model_->attention().reorder(input)) {
    std::swap(order[static_cast<std::size_t>(a)], order[static_cast<std::size_t>(b)]);
  }
  return order;
}

std::int64_t ModelRunner::slot_of(std::span<const BlockId> blocks, std::int32_t position) const {
  const std::int32_t size = model_->attention().block_size();
  return static_cast<std::int64_t>(blocks[static_cast<std::size_t>(position / size)]) * size + position % size;
}

void ModelRunner::fill(std::span<const SequenceRows> sequences) {
  const std::vector<std::size_t> order = order_of(sequences);
  batch_ = {};
  batch_.query_start_loc.push_back(0);
  first_output_.assign(sequences.size(), 0);
  bool has_tree = false;
  for (const std::size_t index : order) {
    const SequenceRows& one = sequences[index];
    const auto count = static_cast<std::int32_t>(one.tokens.size());
    first_output_[index] = batch_.outputs.size();
    for (std::int32_t row = 0; row < count; ++row) {
      if (row >= one.first_output) batch_.outputs.push_back(static_cast<std::int32_t>(batch_.tokens.size()));
      batch_.tokens.push_back(one.tokens[static_cast<std::size_t>(row)]);
      batch_.positions.push_back(one.context_len + (one.tree != nullptr ? one.tree->depth(row) : row));
      batch_.slots.push_back(slot_of(one.blocks, one.context_len + row));
    }
    batch_.query_start_loc.push_back(static_cast<std::int32_t>(batch_.tokens.size()));
    batch_.seq_lens.push_back(one.context_len + count);
    batch_.computed.push_back(one.context_len);
    batch_.trees.push_back(one.tree);
    batch_.cross_lens.push_back(one.cross_len);
    has_tree = has_tree || one.tree != nullptr;
  }
  if (!has_tree) batch_.trees.clear();
  fill_table(sequences, order, &SequenceRows::blocks, batch_.block_table);
  fill_table(sequences, order, &SequenceRows::cross_blocks, batch_.cross_table);
}

CommonAttentionMetadata ModelRunner::common(std::int64_t num_seqs) {
  const auto num_tokens = static_cast<std::int64_t>(batch_.tokens.size());
  CommonAttentionMetadata out;
  out.query_start_loc_cpu = batch_.query_start_loc;
  out.seq_lens_cpu = batch_.seq_lens;
  out.num_computed_tokens_cpu = batch_.computed;
  out.num_reqs = static_cast<std::int32_t>(num_seqs);
  out.num_actual_tokens = static_cast<std::int32_t>(num_tokens);
  for (std::size_t i = 0; i < batch_.seq_lens.size(); ++i) {
    out.max_query_len = std::max(out.max_query_len, batch_.query_start_loc[i + 1] - batch_.query_start_loc[i]);
    out.max_seq_len = std::max(out.max_seq_len, batch_.seq_lens[i]);
  }
  const auto width = static_cast<std::int64_t>(batch_.block_table.size()) / num_seqs;
  out.block_table_tensor = vector_view(batch_.block_table, DType::kInt32, num_seqs, width);
  out.slot_mapping = vector_view(batch_.slots, DType::kInt64, num_tokens, 0);
  out.positions = vector_view(batch_.positions, DType::kInt64, num_tokens, 0);
  out.trees = batch_.trees;
  return out;
}

Status ModelRunner::run(std::span<const SequenceRows> sequences) {
  if (sequences.empty()) return {};
  fill(sequences);
  const auto num_seqs = static_cast<std::int64_t>(sequences.size());
  const CommonAttentionMetadata own = common(num_seqs);
  if (info().is_encoder_decoder) {
    CommonAttentionMetadata cross = own;
    cross.seq_lens_cpu = batch_.cross_lens;
    cross.num_computed_tokens_cpu = {};
    cross.encoder_seq_lens_cpu = batch_.cross_lens;
    cross.max_seq_len = *std::max_element(batch_.cross_lens.begin(), batch_.cross_lens.end());
    const auto width = static_cast<std::int64_t>(batch_.cross_table.size()) / num_seqs;
    cross.block_table_tensor = vector_view(batch_.cross_table, DType::kInt32, num_seqs, width);
    cross.slot_mapping = {};
    cross.causal = false;
    QUIRE_RETURN_IF_ERROR(model_->attention().begin_step(own, &cross));
  } else {
    QUIRE_RETURN_IF_ERROR(model_->attention().begin_step(own));
  }
  logits_.resize(batch_.outputs.size() * static_cast<std::size_t>(info().vocab_size));
  return model_->forward({.tokens = batch_.tokens, .positions = batch_.positions, .outputs = batch_.outputs}, logits_);
}

std::span<const float> ModelRunner::logits(std::size_t sequence, std::int32_t index) const {
  const auto vocab = static_cast<std::size_t>(info().vocab_size);
  const std::size_t row = first_output_[sequence] + static_cast<std::size_t>(index);
  return std::span(logits_).subspan(row * vocab, vocab);
}

Status ModelRunner::encode(std::span<const std::int32_t> tokens, std::span<const BlockId> blocks) {
  std::vector<std::int64_t> slots;
  for (std::size_t i = 0; i < tokens.size(); ++i) slots.push_back(slot_of(blocks, static_cast<std::int32_t>(i)));
  return model_->encode(tokens, slots);
}

Status ModelRunner::move(std::span<const BlockId> source, std::span<const BlockId> destination,
                         std::span<const Move> moves) {
  std::vector<SlotPair> pairs;
  for (const Move& one : moves) pairs.push_back({slot_of(source, one.from), slot_of(destination, one.to)});
  return model_->attention().move_tokens(pairs);
}

}  // namespace quire
