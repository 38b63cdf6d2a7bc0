// Implements the scheduler.
#include "engine/scheduler.h"

#include <algorithm>
#include <string>

#include "core/checked.h"
#include "engine/tree_growth.h"

namespace quire {
namespace {

// By path, shared nodes are computed again; branches beyond this many times the tree's rows are left out.
constexpr std::int32_t kPathRows = 3;

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options, BlockPool pool)
    : options_(options), pool_(std::move(pool)), prefix_cache_(pool_, options.block_size) {}

std::int32_t Scheduler::chunk_of(const RequestState& state, std::int32_t budget) const {
  std::int32_t chunk = std::min(state.pending(), budget);
  if (options_.max_prefill_chunk > 0) chunk = std::min(chunk, options_.max_prefill_chunk);
  return chunk;
}

// A tree needs the whole of its rows in the budget and in the model's length, and something left to generate.
std::int32_t Scheduler::tree_rows_of(const RequestState& state, std::int32_t budget) const {
  if (!state.request.tree || state.pending() != 1) return 0;
  const std::int32_t rows = max_tree_rows(*state.request.tree);
  const std::int32_t left = state.request.sampling.max_tokens - state.num_output();
  const bool by_path = options_.tree_verification == TreeVerification::kByPath && !is_chain(*state.request.tree);
  const std::int32_t wanted = by_path ? kPathRows * rows : rows;
  if (wanted > budget || left < 2 || state.num_computed + rows > options_.max_model_len) return 0;
  return wanted;
}

Result<bool> Scheduler::reserve(RequestState& state, std::int32_t num_tokens) {
  const std::int64_t wanted =
      ceil_div(num_tokens, options_.block_size) - static_cast<std::int64_t>(state.blocks.size());
  if (wanted <= 0) return true;
  if (wanted > pool_.num_free_blocks()) return false;
  QUIRE_ASSIGN_OR_RETURN(const std::vector<BlockId> blocks, pool_.allocate(wanted));
  state.blocks.insert(state.blocks.end(), blocks.begin(), blocks.end());
  peak_blocks_ = std::max(peak_blocks_, pool_.num_blocks() - 1 - pool_.num_free_blocks());
  return true;
}

Status Scheduler::release(RequestState& state) {
  QUIRE_RETURN_IF_ERROR(commit(state));
  std::reverse(state.blocks.begin(), state.blocks.end());  // the end of a sequence is reused first
  QUIRE_RETURN_IF_ERROR(pool_.release(state.blocks));
  QUIRE_RETURN_IF_ERROR(pool_.release(state.cross_blocks));
  state.blocks.clear();
  state.cross_blocks.clear();
  state.encoded = false;
  state.num_computed = state.draft_computed = state.committed = 0;
  return {};
}

Status Scheduler::commit(RequestState& state) {
  if (options_.prefix_caching == PrefixCaching::kOff || !state.encoder_tokens.empty()) return {};
  const std::int32_t full = state.num_computed / options_.block_size * options_.block_size;
  if (full <= state.committed) return {};
  state.committed = full;
  return prefix_cache_.commit(state.tokens, state.blocks, full);
}

Result<std::vector<BlockId>> Scheduler::borrow(std::int64_t count) {
  if (count > pool_.num_free_blocks()) return std::vector<BlockId>();
  return pool_.allocate(count);
}

Status Scheduler::preempt_last() {
  std::unique_ptr<RequestState> state = std::move(running_.back());
  running_.pop_back();
  QUIRE_RETURN_IF_ERROR(release(*state));
  waiting_.push_front(std::move(state));
  ++preemptions_;
  return {};
}

Result<std::vector<ScheduledRequest>> Scheduler::schedule() {
  std::vector<ScheduledRequest> step;
  std::int32_t budget = options_.max_num_batched_tokens;
  const std::int64_t preempted = preemptions_;
  for (std::size_t i = 0; i < running_.size() && budget > 0;) {
    RequestState& state = *running_[i];
    ScheduledRequest one{.state = &state, .num_tokens = chunk_of(state, budget)};
    one.tree_rows = tree_rows_of(state, budget);
    const std::int32_t rows = one.tree_rows > 0 ? max_tree_rows(*state.request.tree) : one.num_tokens;
    QUIRE_ASSIGN_OR_RETURN(bool fits, reserve(state, state.num_computed + rows));
    if (!fits && one.tree_rows > 0) {
      one.tree_rows = 0;
      QUIRE_ASSIGN_OR_RETURN(fits, reserve(state, state.num_computed + one.num_tokens));
    }
    if (!fits) {
      if (running_.size() == 1) return resource_exhausted("KV cache: want room for one request, got too few blocks");
      QUIRE_RETURN_IF_ERROR(preempt_last());
      continue;  // with one request less; the loop ends when this one was the last
    }
    budget -= std::max(one.num_tokens, one.tree_rows);
    step.push_back(one);
    ++i;
  }
  bool more = preempted == preemptions_;
  while (more && budget > 0) {
    QUIRE_ASSIGN_OR_RETURN(more, admit(step, budget));
  }
  return step;
}

// Takes over a known prefix and reserves the first chunk; false when the blocks do not suffice.
Result<bool> Scheduler::reserve_start(RequestState& state, std::int32_t budget) {
  if (!state.encoder_tokens.empty()) {
    const std::int64_t wanted = ceil_div(static_cast<std::int64_t>(state.encoder_tokens.size()), options_.block_size);
    if (wanted >= pool_.num_free_blocks()) return false;
    QUIRE_ASSIGN_OR_RETURN(state.cross_blocks, pool_.allocate(wanted));
  } else if (options_.prefix_caching == PrefixCaching::kOn) {
    QUIRE_ASSIGN_OR_RETURN(state.blocks, prefix_cache_.acquire_prefix(state.tokens));
    state.num_computed = static_cast<std::int32_t>(state.blocks.size()) * options_.block_size;
    state.committed = state.num_computed;
  }
  return reserve(state, state.num_computed + chunk_of(state, budget));
}

Result<bool> Scheduler::admit(std::vector<ScheduledRequest>& step, std::int32_t& budget) {
  if (waiting_.empty() || running_.size() >= static_cast<std::size_t>(options_.max_num_seqs)) return false;
  RequestState& state = *waiting_.front();
  QUIRE_ASSIGN_OR_RETURN(const bool fits, reserve_start(state, budget));
  if (!fits) {
    QUIRE_RETURN_IF_ERROR(release(state));
    if (running_.empty()) return resource_exhausted("KV cache: want room for one request, got too few blocks");
    return false;
  }
  prefix_hit_tokens_ += state.num_computed;
  const ScheduledRequest one{.state = &state, .num_tokens = chunk_of(state, budget)};
  budget -= one.num_tokens;
  step.push_back(one);
  running_.push_back(std::move(waiting_.front()));
  waiting_.pop_front();
  return true;
}

Result<bool> Scheduler::finish(RequestId id) {
  const auto same = [id](const std::unique_ptr<RequestState>& state) { return state->id == id; };
  const auto running = std::find_if(running_.begin(), running_.end(), same);
  if (running != running_.end()) {
    QUIRE_RETURN_IF_ERROR(release(**running));
    running_.erase(running);
    return true;
  }
  const auto waiting = std::find_if(waiting_.begin(), waiting_.end(), same);
  if (waiting == waiting_.end()) return false;
  waiting_.erase(waiting);
  return true;
}

void Scheduler::clear() {
  while (!running_.empty()) {
    if (!release(*running_.back()).ok()) break;
    running_.pop_back();
  }
  running_.clear();
  waiting_.clear();
  pool_.reset_prefix_cache();
}

}  // namespace quire
