// The options of commands that run the engine, and what they become.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cli/command.h"
#include "cli/runtime_options.h"
#include "quire/engine.h"

namespace quire::cli {

// Numbers below zero stand for what generation_config.json says.
struct GenerateOptions {
  std::string model;
  std::string draft;
  bool ngram = false;
  std::string tree;
  std::string backend;
  std::string dtype;
  std::string kv_cache_dtype = "auto";
  std::int32_t max_tokens = 128;
  double temperature = -1.0;
  std::int32_t top_k = -1;
  double top_p = -1.0;
  std::uint64_t seed = 0;
  std::vector<std::string> stop;
  bool ignore_eos = false;
  bool batch_invariant = false;
  bool no_prefix_caching = false;
  std::int32_t block_size = 16;
  std::int32_t num_blocks = 0;
  std::int32_t max_num_seqs = 16;
  std::int32_t max_num_batched_tokens = 512;
  std::int32_t prefill_chunk = 0;
  std::int32_t max_model_len = 0;
  RuntimeOptions runtime;
};

// The options of checkpoint, drafts and cache; those of sampling.
void add_engine_options(Usage& usage, GenerateOptions& options);
void add_sampling_options(Usage& usage, GenerateOptions& options);

// Errors name the option.
Result<EngineOptions> engine_options(const GenerateOptions& options);
SamplingParams sampling_params(const GenerateOptions& options, const SamplingParams& defaults);

// "chain:5" (five drafts after each other), "grow" or "grow:nodes=12,depth=5,beam=4,branch=4,min=0.01" (by the draft's
// probabilities), or choices "[(0,), (1,), (0, 0)]".
Result<TreePolicy> parse_tree_policy(std::string_view text);
// The policy of a run: none without drafts, "grow" where no tree is given ("chain:4" on other backends than TREE_ATTN).
Result<std::optional<TreePolicy>> tree_policy(const GenerateOptions& options);

}  // namespace quire::cli
