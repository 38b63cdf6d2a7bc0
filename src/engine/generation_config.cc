// Implements the reading of generation_config.json.
#include "engine/generation_config.h"

#include <array>
#include <filesystem>

namespace quire {
namespace {

// Keys of beam search and of lengths that the caller decides, and those that only describe.
constexpr std::array<std::string_view, 14> kHarmless = {
    "_from_model_config",   "max_length",     "max_new_tokens", "num_beams",          "early_stopping",
    "length_penalty",       "begin_suppress", "bos_token_id",   "pad_token_id",       "num_return_sequences",
    "cache_implementation", "use_cache",      "min_length",     "forced_eos_token_id"};

Status read_sampling(const HfConfig& file, SamplingParams& params) {
  QUIRE_ASSIGN_OR_RETURN(const bool sample, file.flag_or("do_sample", false));
  QUIRE_ASSIGN_OR_RETURN(const double temperature, file.number_or("temperature", 1.0));
  QUIRE_ASSIGN_OR_RETURN(const std::int32_t top_k, file.integer_or("top_k", 0));
  QUIRE_ASSIGN_OR_RETURN(const double top_p, file.number_or("top_p", 1.0));
  if (!sample) return {};
  params.temperature = static_cast<float>(temperature);
  params.top_k = top_k;
  params.top_p = static_cast<float>(top_p);
  return {};
}

Status check_processors(const HfConfig& file) {
  QUIRE_RETURN_IF_ERROR(file.expect_number("repetition_penalty", 1.0));
  QUIRE_RETURN_IF_ERROR(file.expect_number("no_repeat_ngram_size", 0.0));
  QUIRE_RETURN_IF_ERROR(file.expect_number("typical_p", 1.0));
  QUIRE_RETURN_IF_ERROR(file.expect_number("min_p", 0.0));
  return file.check_all_read(kHarmless);
}

}  // namespace

Result<GenerationConfig> read_generation_config(const std::string& folder, const HfConfig& config) {
  GenerationConfig out;
  QUIRE_ASSIGN_OR_RETURN(out.eos_tokens, config.integers("eos_token_id"));
  QUIRE_ASSIGN_OR_RETURN(out.decoder_start_token, config.integer_or("decoder_start_token_id", -1));
  const std::filesystem::path path = std::filesystem::path(folder) / "generation_config.json";
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return out;
  QUIRE_ASSIGN_OR_RETURN(const HfConfig file, HfConfig::open(path.string()));
  if (file.has("eos_token_id")) {
    QUIRE_ASSIGN_OR_RETURN(out.eos_tokens, file.integers("eos_token_id"));
  }
  QUIRE_ASSIGN_OR_RETURN(out.decoder_start_token, file.integer_or("decoder_start_token_id", out.decoder_start_token));
  QUIRE_RETURN_IF_ERROR(read_sampling(file, out.defaults));
  QUIRE_RETURN_IF_ERROR(check_processors(file));
  return out;
}

}  // namespace quire
