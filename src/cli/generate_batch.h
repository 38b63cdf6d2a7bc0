// Batches of requests as JSON lines.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "quire/engine.h"

namespace quire::cli {

// One line: {"prompt": "...", "max_tokens": 64, "temperature": 0.8, "top_k": 0, "top_p": 1, "seed": 1, "stop": ["..."],
// "ignore_eos": false, "tree": "grow"}; all but the prompt are optional.
struct BatchLine {
  std::string prompt;
  SamplingParams sampling;
  std::string tree;  // empty: as the command line says
};
// Errors name file, line and key.
Result<std::vector<BatchLine>> read_batch(const std::string& path, const SamplingParams& defaults);

struct BatchAnswer {
  std::size_t index = 0;
  std::string prompt;
  std::string text;
  std::int64_t prompt_tokens = 0;
  std::int64_t tokens = 0;
  FinishReason finish = FinishReason::kNone;
};
// One JSON object with a newline at its end.
std::string answer_line(const BatchAnswer& answer);

}  // namespace quire::cli
