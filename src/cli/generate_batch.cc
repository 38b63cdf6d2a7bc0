// Reading of batch files and writing of answers.
#include "cli/generate_batch.h"

#include <fstream>
#include <nlohmann/json.hpp>

#include "cli/json.h"
#include "io/json_text.h"

namespace quire::cli {
namespace {

using Json = nlohmann::json;

// Reads `value` into `out`; false if it is of another kind.
bool read(const Json& value, std::string& out) { return value.is_string() && (out = value.get<std::string>(), true); }

bool read(const Json& value, float& out) { return value.is_number() && (out = value.get<float>(), true); }

bool read(const Json& value, std::int32_t& out) {
  if (!value.is_number_integer() || value < 0 || value > 0x7fffffff) return false;
  out = value.get<std::int32_t>();
  return true;
}

bool read(const Json& value, std::uint64_t& out) {
  if (!value.is_number_integer() || value < 0) return false;
  out = value.get<std::uint64_t>();
  return true;
}

bool read(const Json& value, EosRule& out) {
  return value.is_boolean() && (out = value.get<bool>() ? EosRule::kIgnore : EosRule::kStop, true);
}

bool read(const Json& value, std::vector<std::string>& out) {
  if (!value.is_array()) return false;
  out.clear();
  for (const Json& item : value) {
    if (!item.is_string()) return false;
    out.push_back(item.get<std::string>());
  }
  return true;
}

enum class KeyResult { kRead, kWrong, kUnknown };

KeyResult read_key(const std::string& key, const Json& value, BatchLine& line) {
  const auto result = [](bool good) { return good ? KeyResult::kRead : KeyResult::kWrong; };
  SamplingParams& sampling = line.sampling;
  if (key == "prompt") return result(read(value, line.prompt));
  if (key == "max_tokens") return result(read(value, sampling.max_tokens));
  if (key == "temperature") return result(read(value, sampling.temperature));
  if (key == "top_k") return result(read(value, sampling.top_k));
  if (key == "top_p") return result(read(value, sampling.top_p));
  if (key == "seed") return result(read(value, sampling.seed));
  if (key == "stop") return result(read(value, sampling.stop_strings));
  if (key == "ignore_eos") return result(read(value, sampling.eos));
  if (key == "tree") return result(read(value, line.tree));
  return KeyResult::kUnknown;
}

Result<BatchLine> parse_line(const std::string& text, const std::string& place, const SamplingParams& defaults) {
  const Result<Json> parsed = parse_json(text);
  if (!parsed.ok()) return data_loss(place + ": " + parsed.status().message());
  const Json& object = *parsed;
  if (!object.is_object()) return data_loss(place + ": want a JSON object");
  if (!object.contains("prompt")) return data_loss(place + ": want the key 'prompt'");
  BatchLine line{.prompt = {}, .sampling = defaults, .tree = {}};
  for (const auto& [key, value] : object.items()) {
    switch (read_key(key, value, line)) {
      case KeyResult::kRead:
        break;
      case KeyResult::kWrong:
        return data_loss(place + ": key '" + key + "': got a value of the wrong kind or range");
      case KeyResult::kUnknown:
        return data_loss(place + ": key '" + key +
                         "': want prompt, max_tokens, temperature, top_k, top_p, seed, stop, ignore_eos or tree");
    }
  }
  return line;
}

}  // namespace

Result<std::vector<BatchLine>> read_batch(const std::string& path, const SamplingParams& defaults) {
  std::ifstream file(path);
  if (!file) return not_found("batch: want a readable file, got " + path);
  std::vector<BatchLine> out;
  std::string text;
  for (int number = 1; std::getline(file, text); ++number) {
    if (text.find_first_not_of(" \t\r") == std::string::npos) continue;
    QUIRE_ASSIGN_OR_RETURN(BatchLine line, parse_line(text, path + ":" + std::to_string(number), defaults));
    out.push_back(std::move(line));
  }
  if (file.bad()) return data_loss(path + ": could not be read to its end");
  if (out.empty()) return data_loss(path + ": want at least one request, got none");
  return out;
}

std::string answer_line(const BatchAnswer& answer) {
  return json_line(JsonValue::Object{{"index", static_cast<std::int64_t>(answer.index)},
                                     {"prompt", answer.prompt},
                                     {"text", answer.text},
                                     {"prompt_tokens", answer.prompt_tokens},
                                     {"tokens", answer.tokens},
                                     {"finish_reason", finish_reason_name(answer.finish)}});
}

}  // namespace quire::cli
