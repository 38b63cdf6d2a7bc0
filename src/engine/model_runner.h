// ModelRunner: one model with its caches; turns sequences into a batch, runs it and hands out the logits.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "models/model.h"
#include "quire/block_pool.h"
#include "quire/metadata.h"
#include "quire/status.h"
#include "quire/tree.h"

namespace quire {

// The new tokens of one sequence. With a tree, row r is its node r and stands at the depth of the node; the tree must
// have as many nodes as there are tokens.
struct SequenceRows {
  std::span<const std::int32_t> tokens = {};
  std::int32_t context_len = 0;                // tokens whose keys are in the cache
  std::span<const BlockId> blocks = {};        // of all positions context_len + tokens
  const TokenTree* tree = nullptr;             // a branching tree; a chain needs none
  std::int32_t first_output = 0;               // logits are wanted of the rows from here on
  std::span<const BlockId> cross_blocks = {};  // encoder-decoder models: where the encoder's keys are
  std::int32_t cross_len = 0;
};

class ModelRunner {
 public:
  explicit ModelRunner(std::unique_ptr<DecoderModel> model) : model_(std::move(model)) {}

  DecoderModel& model() { return *model_; }
  const ModelInfo& info() const { return model_->info(); }
  double attention_seconds() const { return model_->attention().seconds(); }

  // Runs all sequences in one pass.
  Status run(std::span<const SequenceRows> sequences);
  // The logits [vocab_size] of output `index` (0: row first_output) of a sequence of the last run.
  std::span<const float> logits(std::size_t sequence, std::int32_t index) const;

  // Encoder-decoder models: fills the cross-attention caches of `blocks` for a prompt.
  Status encode(std::span<const std::int32_t> tokens, std::span<const BlockId> blocks);
  // Copies tokens from positions of one block table to positions of another, in order.
  struct Move {
    std::int32_t from = 0;
    std::int32_t to = 0;
  };
  Status move(std::span<const BlockId> source, std::span<const BlockId> destination, std::span<const Move> moves);

 private:
  // The arrays that a step's metadata points at.
  struct Batch {
    std::vector<std::int32_t> tokens;
    std::vector<std::int64_t> positions;
    std::vector<std::int64_t> slots;
    std::vector<std::int32_t> outputs;
    std::vector<std::int32_t> query_start_loc;
    std::vector<std::int32_t> seq_lens;
    std::vector<std::int32_t> computed;
    std::vector<std::int32_t> block_table;
    std::vector<const TokenTree*> trees;
    std::vector<std::int32_t> cross_lens;
    std::vector<std::int32_t> cross_table;
  };
  std::vector<std::size_t> order_of(std::span<const SequenceRows> sequences) const;
  void fill(std::span<const SequenceRows> sequences);
  CommonAttentionMetadata common(std::int64_t num_seqs);
  std::int64_t slot_of(std::span<const BlockId> blocks, std::int32_t position) const;

  std::unique_ptr<DecoderModel> model_;
  Batch batch_;
  std::vector<std::size_t> first_output_;  // of each sequence in logits_, in rows
  std::vector<float> logits_;
};

}  // namespace quire
