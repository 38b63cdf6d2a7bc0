// Implements the engine's options.
#include "cli/generate_options.h"

#include <omp.h>

#include <charconv>
#include <map>

namespace quire::cli {
namespace {

Status wrong_tree(std::string_view text) {
  return invalid_argument(
      "tree: want chain:N, grow, grow:nodes=N,depth=N,beam=N,branch=N,min=P or choices like [(0,), (1,), (0, 0)], "
      "got " +
      std::string(text));
}

template <class T>
bool parse_number(std::string_view text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

Result<TreePolicy> parse_growth(std::string_view all, std::string_view settings) {
  TreePolicy policy;
  const std::map<std::string_view, std::int32_t*> numbers = {
      {"nodes", &policy.max_nodes}, {"depth", &policy.max_depth}, {"beam", &policy.beam}, {"branch", &policy.branch}};
  while (!settings.empty()) {
    const std::string_view one = settings.substr(0, settings.find(','));
    settings.remove_prefix(std::min(one.size() + 1, settings.size()));
    const std::size_t equal = one.find('=');
    if (equal == std::string_view::npos) return wrong_tree(all);
    const std::string_view value = one.substr(equal + 1);
    const auto number = numbers.find(one.substr(0, equal));
    const bool read = number != numbers.end() ? parse_number(value, *number->second)
                                              : one.starts_with("min=") && parse_number(value, policy.min_probability);
    if (!read) return wrong_tree(all);
  }
  return policy;
}

}  // namespace

void add_engine_options(Usage& usage, GenerateOptions& options) {
  const std::vector<Option> more = {
      {"--model", &options.model, "Folder of a Hugging Face checkpoint", Option::Presence::kRequired},
      {"--draft", &options.draft, "Folder of a smaller checkpoint of the same tokenizer that drafts tokens"},
      {"--ngram", &options.ngram, "Draft from the text itself: what followed its last tokens before"},
      {"--tree", &options.tree,
       "Drafts: chain:N, grow[:nodes=N,depth=N,beam=N,branch=N,min=P] or [(0,), (1,), (0, 0)]"},
      {"--backend", &options.backend, "Attention backend (default: TREE_ATTN with drafts, else what fits the model)"},
      {"--dtype", &options.dtype, "float32 or bfloat16, of linear layers and attention (default: the checkpoint's)"},
      {"--kv-cache-dtype", &options.kv_cache_dtype, "auto, bfloat16, fp8_e4m3, int8_per_token_head ..."},
      {"--batch-invariant", &options.batch_invariant, "The same bits whatever a request is batched or chunked with"},
      {"--no-prefix-caching", &options.no_prefix_caching, "Do not share the cache of equal prompt beginnings"},
      {"--block-size", &options.block_size, "Tokens a cache block"},
      {"--num-blocks", &options.num_blocks, "Blocks of the cache; 0: enough, at most 1 GiB"},
      {"--max-num-seqs", &options.max_num_seqs, "Requests that run at once"},
      {"--max-num-batched-tokens", &options.max_num_batched_tokens, "Tokens of a step"},
      {"--prefill-chunk", &options.prefill_chunk, "Prompt tokens of a request in a step; 0: what the step leaves"},
      {"--max-model-len", &options.max_model_len, "Tokens of a sequence; 0: as the checkpoint says"},
  };
  usage.options.insert(usage.options.end(), more.begin(), more.end());
}

void add_sampling_options(Usage& usage, GenerateOptions& options) {
  const std::vector<Option> more = {
      {"--max-tokens", &options.max_tokens, "New tokens of a request at most"},
      {"--temperature", &options.temperature, "0: the likeliest token; below 0: as generation_config.json says"},
      {"--top-k", &options.top_k, "0: all; below 0: as generation_config.json says"},
      {"--top-p", &options.top_p, "1: all; below 0: as generation_config.json says"},
      {"--seed", &options.seed, "Of the sampling"},
      {"--stop", &options.stop, "Text that ends a request; may be given more than once"},
      {"--ignore-eos", &options.ignore_eos, "Go on behind the end-of-sequence token"},
  };
  usage.options.insert(usage.options.end(), more.begin(), more.end());
}

Result<TreePolicy> parse_tree_policy(std::string_view text) {
  if (text == "grow") return TreePolicy{};
  if (text.starts_with("grow:")) return parse_growth(text, text.substr(5));
  TreePolicy policy;
  if (text.starts_with("chain:")) {
    std::int32_t length = 0;
    if (!parse_number(text.substr(6), length) || length < 1) return wrong_tree(text);
    QUIRE_ASSIGN_OR_RETURN(policy.choices, TokenTree::chain(length));
    return policy;
  }
  if (!text.starts_with("[")) return wrong_tree(text);
  QUIRE_ASSIGN_OR_RETURN(policy.choices, TokenTree::parse(text));
  return policy;
}

Result<std::optional<TreePolicy>> tree_policy(const GenerateOptions& options) {
  const bool drafts = options.ngram || !options.draft.empty();
  if (!drafts) {
    if (!options.tree.empty()) return invalid_argument("tree: want --draft or --ngram with it");
    return std::optional<TreePolicy>();
  }
  const bool branches = options.backend.empty() || options.backend == "TREE_ATTN";
  const std::string text = options.tree.empty() ? (branches ? "grow" : "chain:4") : options.tree;
  QUIRE_ASSIGN_OR_RETURN(TreePolicy policy, parse_tree_policy(text));
  return std::optional<TreePolicy>(std::move(policy));
}

Result<EngineOptions> engine_options(const GenerateOptions& options) {
  if (options.ngram && !options.draft.empty()) return invalid_argument("draft, ngram: want one of them, got both");
  EngineOptions out{.model = options.model, .draft_model = options.draft};
  if (options.ngram) out.draft = DraftKind::kNgram;
  if (!options.draft.empty()) out.draft = DraftKind::kModel;
  out.backend = options.backend;
  if (!options.dtype.empty()) {
    QUIRE_ASSIGN_OR_RETURN(out.dtype, parse_dtype(options.dtype));
  }
  QUIRE_ASSIGN_OR_RETURN(out.kv_cache_dtype, parse_kv_cache_dtype(options.kv_cache_dtype));
  out.block_size = options.block_size;
  out.num_blocks = options.num_blocks;
  out.max_num_seqs = options.max_num_seqs;
  out.max_num_batched_tokens = options.max_num_batched_tokens;
  out.max_prefill_chunk = options.prefill_chunk;
  out.max_model_len = options.max_model_len;
  if (options.no_prefix_caching) out.prefix_caching = PrefixCaching::kOff;
  if (options.batch_invariant) out.batch_invariance = BatchInvariance::kOn;
  QUIRE_ASSIGN_OR_RETURN(const std::vector<Runtime> runtimes, resolve_runtimes(options.runtime));
  if (runtimes.size() != 1) return invalid_argument("isa: want one instruction set, got all");
  out.runtime = runtimes.front();
  if (options.runtime.threads > 0) omp_set_num_threads(options.runtime.threads);  // the linear layers' too
  return out;
}

SamplingParams sampling_params(const GenerateOptions& options, const SamplingParams& defaults) {
  SamplingParams out = defaults;
  out.max_tokens = options.max_tokens;
  out.seed = options.seed;
  out.stop_strings = options.stop;
  if (options.temperature >= 0.0) out.temperature = static_cast<float>(options.temperature);
  if (options.top_k >= 0) out.top_k = options.top_k;
  if (options.top_p >= 0.0) out.top_p = static_cast<float>(options.top_p);
  if (options.ignore_eos) out.eos = EosRule::kIgnore;
  return out;
}

}  // namespace quire::cli
