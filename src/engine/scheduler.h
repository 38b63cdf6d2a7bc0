// Scheduler: which requests run in a step with how many tokens, and who gets the cache's blocks.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "engine/output_text.h"
#include "quire/block_pool.h"
#include "quire/engine.h"

namespace quire {

// A request from its arrival to its end.
struct RequestState {
  RequestId id = 0;
  GenerateRequest request;
  std::vector<std::int32_t> tokens;  // decoder tokens: prompt, then output
  std::int32_t num_prompt = 0;       // of them
  std::int32_t num_computed = 0;     // keys of tokens[0 .. num_computed) are in the target's cache
  std::int32_t draft_computed = 0;   // the same for the draft's cache
  std::int32_t committed = 0;        // tokens that the prefix cache was told of
  std::vector<BlockId> blocks;
  std::vector<std::int32_t> encoder_tokens;  // encoder-decoder models
  std::vector<BlockId> cross_blocks;
  bool encoded = false;
  OutputText text;

  std::int32_t pending() const { return static_cast<std::int32_t>(tokens.size()) - num_computed; }
  std::int32_t num_output() const { return static_cast<std::int32_t>(tokens.size()) - num_prompt; }
};

// How trees are verified; see Verification.
enum class TreeVerification : std::uint8_t { kTogether, kByPath };

struct SchedulerOptions {
  std::int32_t block_size = 16;
  std::int32_t max_num_seqs = 16;
  std::int32_t max_num_batched_tokens = 512;
  std::int32_t max_prefill_chunk = 0;
  std::int32_t max_model_len = 0;
  PrefixCaching prefix_caching = PrefixCaching::kOn;
  TreeVerification tree_verification = TreeVerification::kTogether;
};

// A request's part of a step.
struct ScheduledRequest {
  RequestState* state = nullptr;
  std::int32_t num_tokens = 0;  // of tokens, from num_computed on
  std::int32_t tree_rows = 0;   // rows that drafting and verifying a tree may take; 0: none
  // Whether the step ends with a new token for the request.
  bool brings_token() const { return num_tokens == state->pending(); }
};

class Scheduler {
 public:
  Scheduler(const SchedulerOptions& options, BlockPool pool);

  void add(std::unique_ptr<RequestState> state) { waiting_.push_back(std::move(state)); }
  bool has_work() const { return !waiting_.empty() || !running_.empty(); }
  // The next step. Requests that run keep their place; when blocks run out, the youngest gives up its own and waits
  // again, to be computed anew. Errors: a single request that the whole cache does not hold.
  Result<std::vector<ScheduledRequest>> schedule();
  // Names the full blocks of what has been computed, so that later requests find them.
  Status commit(RequestState& state);
  // Ends a request: its blocks become free. False if it is not there.
  Result<bool> finish(RequestId id);
  void clear();

  // Blocks for one step; empty when there are too few.
  Result<std::vector<BlockId>> borrow(std::int64_t count);
  Status give_back(std::span<const BlockId> blocks) { return pool_.release(blocks); }
  std::int32_t block_size() const { return options_.block_size; }

  std::int64_t preemptions() const { return preemptions_; }
  std::int64_t prefix_hit_tokens() const { return prefix_hit_tokens_; }
  std::int64_t peak_blocks() const { return peak_blocks_; }
  std::int64_t num_blocks() const { return pool_.num_blocks(); }

 private:
  std::int32_t chunk_of(const RequestState& state, std::int32_t budget) const;
  std::int32_t tree_rows_of(const RequestState& state, std::int32_t budget) const;
  // Makes the request's blocks reach `num_tokens` positions; false when there are none left.
  Result<bool> reserve(RequestState& state, std::int32_t num_tokens);
  Status release(RequestState& state);
  Status preempt_last();
  Result<bool> admit(std::vector<ScheduledRequest>& step, std::int32_t& budget);
  Result<bool> reserve_start(RequestState& state, std::int32_t budget);

  SchedulerOptions options_;
  BlockPool pool_;
  PrefixCache prefix_cache_;
  std::deque<std::unique_ptr<RequestState>> waiting_;
  std::vector<std::unique_ptr<RequestState>> running_;
  std::int64_t preemptions_ = 0;
  std::int64_t prefix_hit_tokens_ = 0;
  std::int64_t peak_blocks_ = 0;
};

}  // namespace quire
