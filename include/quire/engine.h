// Engine: text from Hugging Face checkpoints on the library's backends, with continuous batching, prefix caching and
// tree speculative decoding. It is in the library quire::engine.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "quire/dtype.h"
#include "quire/kv_cache.h"
#include "quire/runtime.h"
#include "quire/status.h"
#include "quire/tree.h"

namespace quire {

enum class PrefixCaching : std::uint8_t { kOff, kOn };
// kOn: a request's logits have the same bits whatever it is batched with and however its prompt is cut into chunks.
// Linear layers then work in tiles of a fixed number of rows, which costs time in small batches.
enum class BatchInvariance : std::uint8_t { kOff, kOn };
// Whether the checkpoint's end-of-sequence tokens end a request.
enum class EosRule : std::uint8_t { kStop, kIgnore };
enum class DraftKind : std::uint8_t { kNone, kModel, kNgram };
enum class FinishReason : std::uint8_t { kNone, kLength, kStopToken, kStopString };
// "", "length", "stop_token", "stop_string".
std::string_view finish_reason_name(FinishReason reason);

// How the next token is chosen from the logits: the largest one (temperature 0), or by chance from
// softmax(logits / temperature), cut to the top_k largest and then to the smallest set of probability top_p. The chance
// of a token depends on the seed and its position alone.
struct SamplingParams {
  float temperature = 0.0f;
  std::int32_t top_k = 0;  // 0: all
  float top_p = 1.0f;
  std::uint64_t seed = 0;
  std::int32_t max_tokens = 64;
  std::vector<std::int32_t> stop_tokens = {};
  std::vector<std::string> stop_strings = {};
  EosRule eos = EosRule::kStop;
};

// The tree of drafts that one pass verifies: fixed choices (child j is the j-th likeliest token after its parent), or
// grown anew each step: levels of at most `beam` expanded nodes with `branch` children each, of which the max_nodes
// likeliest stay.
struct TreePolicy {
  std::optional<TokenTree> choices = {};
  std::int32_t max_nodes = 12;  // without the root
  std::int32_t max_depth = 5;
  std::int32_t beam = 4;
  std::int32_t branch = 4;
  float min_probability = 0.01f;  // of a path, by the draft
};

struct EngineOptions {
  std::string model;             // folder with config.json and the weights
  std::string draft_model = {};  // of the same tokenizer, for DraftKind::kModel
  DraftKind draft = DraftKind::kNone;
  std::string backend = {};         // empty: TREE_ATTN with drafts, else what fits the model
  std::optional<DType> dtype = {};  // float32 or bfloat16; none: the checkpoint's (float16 runs in float32)
  KVCacheDType kv_cache_dtype = KVCacheDType::kAuto;
  std::int32_t block_size = 16;
  std::int64_t num_blocks = 0;  // 0: enough for max_num_seqs full sequences, at most 1 GiB
  std::int32_t max_num_seqs = 16;
  std::int32_t max_num_batched_tokens = 512;
  std::int32_t max_prefill_chunk = 0;  // tokens of one prompt in a step; 0: what the budget leaves
  std::int32_t max_model_len = 0;      // 0: as the checkpoint says
  std::int32_t max_tree_size = 64;     // rows of one tree, root included
  PrefixCaching prefix_caching = PrefixCaching::kOn;
  BatchInvariance batch_invariance = BatchInvariance::kOff;
  // Text of a token sequence, for stop strings and RequestUpdate::text; none: by the checkpoint's tokenizer.json, and
  // neither where that is missing.
  std::function<std::string(std::span<const std::int32_t>)> decode = {};
  std::optional<Runtime> runtime = {};  // none: default_runtime()
};

using RequestId = std::int64_t;

struct GenerateRequest {
  std::vector<std::int32_t> prompt;  // encoder-decoder models: the encoder's tokens
  SamplingParams sampling = {};
  std::optional<TreePolicy> tree = {};  // none: no speculation for this request
  // Called with the position of every token that is chosen and the target's logits [vocab_size] that it is chosen from.
  std::function<void(std::int64_t, std::span<const float>)> on_logits = {};
};

// What a step brought for one request.
struct RequestUpdate {
  RequestId id = 0;
  std::vector<std::int32_t> tokens = {};  // new ones; a stop token is not among them
  std::string text = {};                  // new text, in whole characters; a stop string is cut off
  FinishReason finish = FinishReason::kNone;
};

struct SpeculationStats {
  std::int64_t verify_steps = 0;    // requests x steps that verified a tree
  std::int64_t emitted_tokens = 0;  // of those, bonus tokens included
  std::int64_t drafted_nodes = 0;
  std::vector<std::int64_t> offered_by_depth = {};  // [d]: times that a verified path could have gone on to depth d + 1
  std::vector<std::int64_t> accepted_by_depth = {};  // [d]: times that it did
  double draft_seconds = 0.0;
};

struct EngineStats {
  std::int64_t steps = 0;          // passes of the target model
  std::int64_t decode_rows = 0;    // requests x steps that brought new tokens
  std::int64_t prompt_tokens = 0;  // computed, without prefix hits
  std::int64_t prefix_hit_tokens = 0;
  std::int64_t generated_tokens = 0;
  std::int64_t preemptions = 0;
  std::int64_t prefill_tokens = 0;  // prompt tokens of steps in which no request decoded
  double prefill_seconds = 0.0;     // of these steps
  double decode_seconds = 0.0;      // of the others
  double attention_seconds = 0.0;
  std::int64_t cache_bytes = 0;
  std::int64_t num_blocks = 0;
  std::int64_t peak_blocks = 0;  // in use by requests at once
  SpeculationStats speculation = {};
};

struct EngineInfo {
  std::string architecture;
  std::string backend;
  DType dtype = DType::kFloat32;
  std::int32_t vocab_size = 0;
  std::int32_t max_model_len = 0;
  std::int64_t weight_bytes = 0;
  std::vector<std::int32_t> eos_tokens = {};
  SamplingParams defaults = {};  // what generation_config.json says
};

// Not thread-safe; engines are independent of each other.
class Engine {
 public:
  // Loads the checkpoints and allocates the caches. Errors name file and key.
  static Result<std::unique_ptr<Engine>> create(EngineOptions options);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  const EngineInfo& info() const;
  // By the checkpoint's tokenizer.json, special tokens as it says; kNotFound without one.
  Result<std::vector<std::int32_t>> encode(std::string_view text) const;
  EngineStats stats() const;

  // Queues a request. Errors: an empty prompt, a token outside the vocabulary, a prompt that leaves no room to generate
  // or never fits the cache, sampling parameters out of range, a tree that the model or the backend cannot verify.
  Result<RequestId> add(GenerateRequest request);
  // Drops a request, whatever its state; kNotFound if it is not there.
  Status cancel(RequestId id);
  bool has_work() const;
  // Runs the target model once over the requests that the budget allows. After an error the engine's requests are gone.
  Result<std::vector<RequestUpdate>> step();

 private:
  class State;
  explicit Engine(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// Sentence embeddings of an encoder checkpoint (BERT).
struct EmbedderOptions {
  std::string model;
  std::string backend = {};
  std::optional<DType> dtype = {};
  std::int32_t max_num_batched_tokens = 4096;
  BatchInvariance batch_invariance = BatchInvariance::kOff;
  std::optional<Runtime> runtime = {};
};

class Embedder {
 public:
  static Result<std::unique_ptr<Embedder>> create(const EmbedderOptions& options);
  ~Embedder();
  Embedder(const Embedder&) = delete;
  Embedder& operator=(const Embedder&) = delete;

  std::int32_t hidden_size() const;
  std::int32_t vocab_size() const;
  std::int32_t max_tokens() const;  // of one text, special tokens included
  // The embeddings [texts, hidden_size] of token sequences: pooled and normalised as modules.json asks for; without it
  // the mean over the tokens, normalised. Errors: a text that is empty or too long, a token outside the vocabulary.
  Result<std::vector<float>> embed(std::span<const std::vector<std::int32_t>> texts);
  // The last hidden states [tokens, hidden_size] of one text.
  Result<std::vector<float>> hidden_states(std::span<const std::int32_t> tokens);

 private:
  class State;
  explicit Embedder(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace quire
