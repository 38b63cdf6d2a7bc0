// Implements Engine: loading, the checks of requests, and the step that joins scheduler, drafts, model and sampler.
#include "quire/engine.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <new>
#include <utility>

#include "core/checked.h"
#include "engine/generation_config.h"
#include "engine/model_runner.h"
#include "engine/sampler.h"
#include "engine/scheduler.h"
#include "engine/speculation.h"
#include "engine/verification.h"
#include "io/tokenizer/tokenizer.h"

namespace quire {
namespace {

constexpr std::int64_t kDefaultCacheBytes = std::int64_t{1} << 30;

Status check_options(const EngineOptions& options) {
  const std::pair<const char*, std::int64_t> sizes[] = {{"block_size", options.block_size},
                                                        {"max_num_seqs", options.max_num_seqs},
                                                        {"max_num_batched_tokens", options.max_num_batched_tokens},
                                                        {"max_tree_size", options.max_tree_size}};
  for (const auto& [name, value] : sizes) {
    if (value < 1) return invalid_argument(std::string(name) + ": want at least 1, got " + std::to_string(value));
  }
  if (options.num_blocks < 0 || options.max_prefill_chunk < 0 || options.max_model_len < 0) {
    return invalid_argument("num_blocks, max_prefill_chunk, max_model_len: want at least 0");
  }
  if (options.max_num_batched_tokens < options.max_num_seqs) {
    return invalid_argument("max_num_batched_tokens: want at least max_num_seqs " +
                            std::to_string(options.max_num_seqs) + ", got " +
                            std::to_string(options.max_num_batched_tokens));
  }
  if (options.runtime && options.runtime->backplane == Backplane::kCuda) {
    return unsupported(
        "runtime.backplane: want cpu or reference for an engine, whose caches are on the host; got cuda");
  }
  if ((options.draft == DraftKind::kModel) == options.draft_model.empty()) {
    return invalid_argument("draft_model: want a folder with DraftKind::kModel and none without it");
  }
  return {};
}

ModelOptions model_options(const EngineOptions& options, const Runtime& runtime) {
  const std::int64_t tokens = options.max_num_batched_tokens;
  const bool drafts = options.draft != DraftKind::kNone;
  const std::int64_t outputs = drafts ? tokens : options.max_num_seqs;
  return {.backend = options.backend.empty() && drafts ? "TREE_ATTN" : options.backend,
          .dtype = options.dtype,
          .kv_cache_dtype = options.kv_cache_dtype,
          .block_size = options.block_size,
          .tiling = options.batch_invariance == BatchInvariance::kOn ? RowTiling::kFixed : RowTiling::kByCount,
          .max_tokens = tokens,
          .max_outputs = std::min(tokens, outputs),
          .max_model_len = options.max_model_len,
          .runtime = runtime};
}

}  // namespace

std::string_view finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone:
      return "";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kStopToken:
      return "stop_token";
    case FinishReason::kStopString:
      return "stop_string";
  }
  return "";
}

class Engine::State {
 public:
  explicit State(EngineOptions options) : options_(std::move(options)) {}
  Status load();
  Result<std::vector<std::int32_t>> encode(std::string_view text) const;
  const EngineInfo& info() const { return info_; }
  EngineStats stats() const;
  Result<RequestId> add(GenerateRequest request);
  Result<bool> cancel(RequestId id) { return scheduler_->finish(id); }
  bool has_work() const { return scheduler_->has_work(); }
  Result<std::vector<RequestUpdate>> step();
  void clear();

 private:
  Status load_tokenizer();
  Status load_draft(const Runtime& runtime);
  Status make_caches();
  Status check_request(const GenerateRequest& request) const;
  Status check_tree(const TreePolicy& policy) const;
  Status encode_new(std::span<const ScheduledRequest> step);
  Result<RequestUpdate> advance(const ScheduledRequest& one, std::size_t index, const DraftTree* tree);
  std::int32_t choose(const RequestState& state, std::int64_t position, std::span<const float> logits) const;
  void emit(RequestState& state, std::span<const std::int32_t> tokens, RequestUpdate& update) const;
  bool is_stop(const RequestState& state, std::int32_t token) const;

  EngineOptions options_;
  EngineInfo info_;
  GenerationConfig generation_;
  std::optional<Tokenizer> tokenizer_;
  std::unique_ptr<ModelRunner> target_;
  std::unique_ptr<Speculator> speculator_;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<Verification> verification_;
  std::int64_t cache_bytes_ = 0;
  RequestId next_id_ = 1;
  EngineStats stats_;
};

Status Engine::State::load() {
  QUIRE_RETURN_IF_ERROR(check_options(options_));
  if (!options_.runtime) {
    QUIRE_ASSIGN_OR_RETURN(options_.runtime, default_runtime());
  }
  QUIRE_ASSIGN_OR_RETURN(Checkpoint opened, Checkpoint::open(options_.model));
  const auto checkpoint = std::make_shared<const Checkpoint>(std::move(opened));
  QUIRE_ASSIGN_OR_RETURN(generation_, read_generation_config(options_.model, checkpoint->config()));
  QUIRE_ASSIGN_OR_RETURN(std::unique_ptr<DecoderModel> model,
                         load_decoder(checkpoint, model_options(options_, *options_.runtime)));
  target_ = std::make_unique<ModelRunner>(std::move(model));
  const ModelInfo& model_info = target_->info();
  info_.architecture = model_info.architecture;
  info_.backend = target_->model().attention().backend_name();
  info_.dtype = model_info.dtype;
  info_.vocab_size = model_info.vocab_size;
  info_.max_model_len = model_info.max_model_len;
  info_.weight_bytes = model_info.weight_bytes;
  info_.eos_tokens = generation_.eos_tokens;
  info_.defaults = generation_.defaults;
  if (model_info.is_encoder_decoder && generation_.decoder_start_token < 0) {
    return data_loss(checkpoint->config().path() + ": key 'decoder_start_token_id': want a token, got none");
  }
  QUIRE_RETURN_IF_ERROR(load_tokenizer());
  QUIRE_RETURN_IF_ERROR(load_draft(*options_.runtime));
  return make_caches();
}

Status Engine::State::load_tokenizer() {
  const std::filesystem::path path = std::filesystem::path(options_.model) / "tokenizer.json";
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return {};
  QUIRE_ASSIGN_OR_RETURN(tokenizer_, Tokenizer::load(path.string()));
  if (options_.decode) return {};
  options_.decode = [this](std::span<const std::int32_t> tokens) {
    const Result<std::string> text = tokenizer_->decode(tokens);
    return text.ok() ? *text : std::string();
  };
  return {};
}

Result<std::vector<std::int32_t>> Engine::State::encode(std::string_view text) const {
  if (!tokenizer_) return not_found(options_.model + "/tokenizer.json: want a tokenizer to encode text, got none");
  return tokenizer_->encode(text);
}

Status Engine::State::load_draft(const Runtime& runtime) {
  if (options_.draft == DraftKind::kNone) return {};
  std::unique_ptr<ModelRunner> draft;
  if (options_.draft == DraftKind::kModel) {
    QUIRE_ASSIGN_OR_RETURN(Checkpoint opened, Checkpoint::open(options_.draft_model));
    const auto checkpoint = std::make_shared<const Checkpoint>(std::move(opened));
    ModelOptions options = model_options(options_, runtime);
    options.max_model_len = info_.max_model_len;
    QUIRE_ASSIGN_OR_RETURN(std::unique_ptr<DecoderModel> model, load_decoder(checkpoint, options));
    draft = std::make_unique<ModelRunner>(std::move(model));
    if (draft->info().vocab_size != info_.vocab_size) {
      return invalid_argument(checkpoint->config().path() + ": key 'vocab_size': want " +
                              std::to_string(info_.vocab_size) + " as the target, got " +
                              std::to_string(draft->info().vocab_size));
    }
  }
  if (target_->info().is_encoder_decoder)
    return unsupported("draft: want a decoder-only model, got " + info_.architecture);
  speculator_ = std::make_unique<Speculator>(std::move(draft), options_.max_num_batched_tokens);
  return {};
}

Status Engine::State::make_caches() {
  PagedAttention& attention = target_->model().attention();
  QUIRE_ASSIGN_OR_RETURN(std::int64_t block_bytes, attention.block_bytes());
  ModelRunner* draft = speculator_ ? speculator_->draft() : nullptr;
  if (draft != nullptr) {
    QUIRE_ASSIGN_OR_RETURN(const std::int64_t bytes, draft->model().attention().block_bytes());
    block_bytes += bytes;
  }
  std::int64_t num_blocks = options_.num_blocks;
  if (num_blocks == 0) {
    const std::int64_t full = ceil_div(info_.max_model_len, options_.block_size) + 1;
    const std::int64_t most = std::max<std::int64_t>(kDefaultCacheBytes / std::max<std::int64_t>(block_bytes, 1), 2);
    num_blocks = std::min(full * options_.max_num_seqs + 1, most);
  }
  QUIRE_RETURN_IF_ERROR(attention.allocate(num_blocks));
  if (draft != nullptr) QUIRE_RETURN_IF_ERROR(draft->model().attention().allocate(num_blocks));
  cache_bytes_ = num_blocks * block_bytes;
  QUIRE_ASSIGN_OR_RETURN(BlockPool pool, BlockPool::create(num_blocks));
  const bool invariant = options_.batch_invariance == BatchInvariance::kOn;
  const TreeVerification how = invariant ? TreeVerification::kByPath : TreeVerification::kTogether;
  const SchedulerOptions scheduling{.block_size = options_.block_size,
                                    .max_num_seqs = options_.max_num_seqs,
                                    .max_num_batched_tokens = options_.max_num_batched_tokens,
                                    .max_prefill_chunk = options_.max_prefill_chunk,
                                    .max_model_len = info_.max_model_len,
                                    .prefix_caching = options_.prefix_caching,
                                    .tree_verification = how};
  scheduler_ = std::make_unique<Scheduler>(scheduling, std::move(pool));
  verification_ = std::make_unique<Verification>(*target_, *scheduler_, how);
  return {};
}

Status Engine::State::check_tree(const TreePolicy& policy) const {
  if (!speculator_) return invalid_argument("tree: want an engine with a draft, got one without");
  const std::int32_t most = std::min(options_.max_tree_size, options_.max_num_batched_tokens);
  QUIRE_RETURN_IF_ERROR(check_policy(policy, most));
  if (is_chain(policy)) return {};
  if (info_.backend != "TREE_ATTN") {
    return unsupported("tree: want a chain or the backend TREE_ATTN, got branches on " + info_.backend);
  }
  ModelRunner* draft = speculator_->draft();
  if (target_->model().attention().has_window_or_alibi() ||
      (draft != nullptr && draft->model().attention().has_window_or_alibi())) {
    return unsupported(
        "tree: want a chain for a model with a sliding window or ALiBi, which measure slots; got branches");
  }
  return {};
}

Status Engine::State::check_request(const GenerateRequest& request) const {
  if (request.prompt.empty()) return invalid_argument("prompt: want at least one token, got none");
  for (const std::int32_t token : request.prompt) {
    if (token >= 0 && token < info_.vocab_size) continue;
    return out_of_range("prompt: want tokens in [0, " + std::to_string(info_.vocab_size) + "), got " +
                        std::to_string(token));
  }
  const auto length = static_cast<std::int64_t>(request.prompt.size());
  const bool crossed = target_->info().is_encoder_decoder;
  if (length + (crossed ? 0 : 1) > info_.max_model_len) {
    return out_of_range("prompt: want at most " + std::to_string(info_.max_model_len - (crossed ? 0 : 1)) +
                        " tokens (max_model_len " + std::to_string(info_.max_model_len) + "), got " +
                        std::to_string(length));
  }
  QUIRE_RETURN_IF_ERROR(check_sampling(request.sampling, info_.vocab_size));
  const std::int64_t own =
      std::min<std::int64_t>((crossed ? 1 : length) + request.sampling.max_tokens, info_.max_model_len);
  const std::int64_t blocks =
      ceil_div(own, options_.block_size) + (crossed ? ceil_div(length, options_.block_size) : 0);
  if (blocks > scheduler_->num_blocks() - 1) {
    return resource_exhausted("prompt: want a request of at most " +
                              std::to_string((scheduler_->num_blocks() - 1) * options_.block_size) +
                              " tokens (the KV cache), got " + std::to_string(length) + " and max_tokens " +
                              std::to_string(request.sampling.max_tokens));
  }
  if (!request.sampling.stop_strings.empty() && !options_.decode) {
    return invalid_argument("stop_strings: want an engine with a decode function, got none");
  }
  return request.tree ? check_tree(*request.tree) : Status();
}

Result<RequestId> Engine::State::add(GenerateRequest request) {
  QUIRE_RETURN_IF_ERROR(check_request(request));
  auto state = std::make_unique<RequestState>();
  state->id = next_id_++;
  if (target_->info().is_encoder_decoder) {
    state->encoder_tokens = request.prompt;
    state->tokens = {generation_.decoder_start_token};
  } else {
    state->tokens = request.prompt;
  }
  state->num_prompt = static_cast<std::int32_t>(state->tokens.size());
  state->request = std::move(request);
  const RequestId id = state->id;
  scheduler_->add(std::move(state));
  return id;
}

Status Engine::State::encode_new(std::span<const ScheduledRequest> step) {
  for (const ScheduledRequest& one : step) {
    RequestState& state = *one.state;
    if (state.encoder_tokens.empty() || state.encoded) continue;
    QUIRE_RETURN_IF_ERROR(target_->encode(state.encoder_tokens, state.cross_blocks));
    stats_.prompt_tokens += static_cast<std::int64_t>(state.encoder_tokens.size());
    state.encoded = true;
  }
  return {};
}

std::int32_t Engine::State::choose(const RequestState& state, std::int64_t position,
                                   std::span<const float> logits) const {
  if (state.request.on_logits) state.request.on_logits(position, logits);
  return sample_token(logits, state.request.sampling, position);
}

bool Engine::State::is_stop(const RequestState& state, std::int32_t token) const {
  const SamplingParams& sampling = state.request.sampling;
  const auto has = [token](const std::vector<std::int32_t>& list) {
    return std::find(list.begin(), list.end(), token) != list.end();
  };
  return has(sampling.stop_tokens) || (sampling.eos == EosRule::kStop && has(info_.eos_tokens));
}

// Takes over new tokens until one ends the request.
void Engine::State::emit(RequestState& state, std::span<const std::int32_t> tokens, RequestUpdate& update) const {
  const SamplingParams& sampling = state.request.sampling;
  for (const std::int32_t token : tokens) {
    if (is_stop(state, token)) {
      update.finish = FinishReason::kStopToken;
      break;
    }
    state.tokens.push_back(token);
    update.tokens.push_back(token);
    if (state.text.add(token, options_.decode, sampling.stop_strings)) {
      update.finish = FinishReason::kStopString;
    } else if (state.num_output() >= sampling.max_tokens ||
               static_cast<std::int32_t>(state.tokens.size()) >= info_.max_model_len) {
      update.finish = FinishReason::kLength;
    }
    if (update.finish != FinishReason::kNone) break;
  }
  const bool ends = update.finish == FinishReason::kLength || update.finish == FinishReason::kStopToken;
  update.text = state.text.take(ends ? OutputText::Rest::kFlush : OutputText::Rest::kHold, sampling.stop_strings);
}

Result<RequestUpdate> Engine::State::advance(const ScheduledRequest& one, std::size_t index, const DraftTree* tree) {
  RequestState& state = *one.state;
  RequestUpdate update{.id = state.id};
  const bool prompt = state.num_computed < state.num_prompt;
  if (tree != nullptr) {
    const Acceptance accepted = Speculator::accept(*tree, [&](std::int32_t node, std::int32_t depth) {
      return choose(state, static_cast<std::int64_t>(state.tokens.size()) + depth, verification_->logits(index, node));
    });
    QUIRE_RETURN_IF_ERROR(verification_->keep(index, accepted.path));
    QUIRE_RETURN_IF_ERROR(speculator_->keep(state, *tree, accepted.path));
    speculator_->count(*tree, accepted.path);
    state.num_computed += static_cast<std::int32_t>(accepted.path.size());
    emit(state, accepted.tokens, update);
  } else {
    const bool brings = one.brings_token();
    if (prompt) stats_.prompt_tokens += std::min(one.num_tokens, state.num_prompt - state.num_computed);
    state.num_computed += one.num_tokens;
    if (brings) {
      const std::int32_t token =
          choose(state, static_cast<std::int64_t>(state.tokens.size()), verification_->logits(index, 0));
      emit(state, {&token, 1}, update);
    }
  }
  state.num_computed = std::min(state.num_computed, static_cast<std::int32_t>(state.tokens.size()));
  state.draft_computed = std::min(state.draft_computed, static_cast<std::int32_t>(state.tokens.size()));
  stats_.generated_tokens += static_cast<std::int64_t>(update.tokens.size());
  if (!update.tokens.empty()) ++stats_.decode_rows;
  QUIRE_RETURN_IF_ERROR(scheduler_->commit(state));
  if (update.finish != FinishReason::kNone) QUIRE_RETURN_IF_ERROR(scheduler_->finish(state.id).status());
  return update;
}

Result<std::vector<RequestUpdate>> Engine::State::step() {
  std::vector<RequestUpdate> updates;
  if (!scheduler_->has_work()) return updates;
  const auto start = std::chrono::steady_clock::now();
  QUIRE_ASSIGN_OR_RETURN(const std::vector<ScheduledRequest> scheduled, scheduler_->schedule());
  if (scheduled.empty()) return internal_error("step: want a request to run, got none");
  const std::int64_t prompt_tokens = stats_.prompt_tokens;
  QUIRE_RETURN_IF_ERROR(encode_new(scheduled));
  Verification::Trees trees(scheduled.size());
  if (speculator_) {
    QUIRE_ASSIGN_OR_RETURN(trees, speculator_->draft_trees(scheduled));
  }
  QUIRE_RETURN_IF_ERROR(verification_->run(scheduled, trees));
  ++stats_.steps;
  bool decodes = false;
  for (std::size_t i = 0; i < scheduled.size(); ++i) {
    decodes = decodes || scheduled[i].state->num_computed >= scheduled[i].state->num_prompt;
    QUIRE_ASSIGN_OR_RETURN(RequestUpdate update, advance(scheduled[i], i, trees[i] ? &*trees[i] : nullptr));
    if (!update.tokens.empty() || update.finish != FinishReason::kNone) updates.push_back(std::move(update));
  }
  QUIRE_RETURN_IF_ERROR(verification_->finish());
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  (decodes ? stats_.decode_seconds : stats_.prefill_seconds) += seconds;
  if (!decodes) stats_.prefill_tokens += stats_.prompt_tokens - prompt_tokens;
  return updates;
}

// After an error: all requests go, and what was borrowed for the step comes back.
void Engine::State::clear() {
  static_cast<void>(verification_->finish());
  scheduler_->clear();
}

EngineStats Engine::State::stats() const {
  EngineStats out = stats_;
  out.prefix_hit_tokens = scheduler_->prefix_hit_tokens();
  out.preemptions = scheduler_->preemptions();
  out.attention_seconds = target_->attention_seconds();
  if (speculator_ && speculator_->draft() != nullptr) {
    out.attention_seconds += speculator_->draft()->attention_seconds();
  }
  out.cache_bytes = cache_bytes_;
  out.num_blocks = scheduler_->num_blocks();
  out.peak_blocks = scheduler_->peak_blocks();
  if (speculator_) out.speculation = speculator_->stats();
  return out;
}

Engine::Engine(std::unique_ptr<State> state) : state_(std::move(state)) {}
Engine::~Engine() = default;

Result<std::unique_ptr<Engine>> Engine::create(EngineOptions options) {
  try {
    auto state = std::make_unique<State>(std::move(options));
    QUIRE_RETURN_IF_ERROR(state->load());
    return std::unique_ptr<Engine>(new Engine(std::move(state)));
  } catch (const std::bad_alloc&) {
    return resource_exhausted("engine: want memory for the model and its buffers, got too little");
  }
}

Result<std::vector<std::int32_t>> Engine::encode(std::string_view text) const { return state_->encode(text); }
const EngineInfo& Engine::info() const { return state_->info(); }
EngineStats Engine::stats() const { return state_->stats(); }
Result<RequestId> Engine::add(GenerateRequest request) { return state_->add(std::move(request)); }
bool Engine::has_work() const { return state_->has_work(); }

Status Engine::cancel(RequestId id) {
  QUIRE_ASSIGN_OR_RETURN(const bool found, state_->cancel(id));
  return found ? Status() : not_found("id: want a request of this engine, got " + std::to_string(id));
}

Result<std::vector<RequestUpdate>> Engine::step() {
  try {
    Result<std::vector<RequestUpdate>> updates = state_->step();
    if (!updates.ok()) state_->clear();
    return updates;
  } catch (const std::bad_alloc&) {
    state_->clear();
    return resource_exhausted("step: want memory for the batch, got too little");
  }
}

}  // namespace quire
