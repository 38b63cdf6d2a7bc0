// What generation_config.json says: the tokens that end a sequence and the sampling defaults.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/hf_config.h"
#include "quire/engine.h"
#include "quire/status.h"

namespace quire {

struct GenerationConfig {
  std::vector<std::int32_t> eos_tokens;
  SamplingParams defaults;
  std::int32_t decoder_start_token = -1;  // encoder-decoder models
};

// Reads `folder`/generation_config.json where it is there, else config.json's token ids. Errors: keys that would change
// the generated text and that quire does not do (repetition_penalty ...), malformed values.
Result<GenerationConfig> read_generation_config(const std::string& folder, const HfConfig& config);

}  // namespace quire
