// Implements HfConfig on nlohmann's JSON parser.
#include "io/hf_config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "io/json_text.h"

namespace quire {
namespace {

using Json = nlohmann::json;

constexpr std::streamoff kMaxConfigBytes = std::streamoff{64} << 20;

// Keys that describe the file, training or an output that quire does not give; they change no logit.
constexpr std::array kCommonKeys = {
    std::string_view("_name_or_path"),
    std::string_view("_commit_hash"),
    std::string_view("architectures"),
    std::string_view("model_type"),
    std::string_view("auto_map"),
    std::string_view("transformers_version"),
    std::string_view("torch_dtype"),
    std::string_view("dtype"),
    std::string_view("use_cache"),
    std::string_view("initializer_range"),
    std::string_view("initializer_factor"),
    std::string_view("pretraining_tp"),
    std::string_view("attention_dropout"),
    std::string_view("hidden_dropout"),
    std::string_view("hidden_dropout_prob"),
    std::string_view("attention_probs_dropout_prob"),
    std::string_view("attn_pdrop"),
    std::string_view("resid_pdrop"),
    std::string_view("emb_pdrop"),
    std::string_view("dropout"),
    std::string_view("activation_dropout"),
    std::string_view("classifier_dropout"),
    std::string_view("classif_dropout"),
    std::string_view("encoder_layerdrop"),
    std::string_view("decoder_layerdrop"),
    std::string_view("init_std"),
    std::string_view("gradient_checkpointing"),
    std::string_view("bos_token_id"),
    std::string_view("eos_token_id"),
    std::string_view("pad_token_id"),
    std::string_view("sep_token_id"),
    std::string_view("unk_token_id"),
    std::string_view("cls_token_id"),
    std::string_view("mask_token_id"),
    std::string_view("decoder_start_token_id"),
    std::string_view("output_attentions"),
    std::string_view("output_hidden_states"),
    std::string_view("return_dict"),
    std::string_view("return_dict_in_generate"),
    std::string_view("output_scores"),
    std::string_view("id2label"),
    std::string_view("label2id"),
    std::string_view("num_labels"),
    std::string_view("problem_type"),
    std::string_view("finetuning_task"),
    std::string_view("task_specific_params"),
    std::string_view("tokenizer_class"),
    std::string_view("use_bfloat16"),
    std::string_view("tf_legacy_loss"),
    std::string_view("torchscript"),
    std::string_view("pruned_heads"),
    std::string_view("chunk_size_feed_forward"),
    std::string_view("_attn_implementation_autoset"),
    std::string_view("attn_implementation"),
};

}  // namespace

struct HfConfig::State {
  std::string path;
  std::string prefix;  // of keys in messages, "rope_scaling." for a nested object
  Json object;
  std::set<std::string, std::less<>> read;

  const Json* find(std::string_view key) {
    read.emplace(key);
    const auto found = object.find(key);
    return found == object.end() || found->is_null() ? nullptr : &*found;
  }
};

Result<HfConfig> HfConfig::open(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return not_found(path + ": cannot be opened");
  const std::streamoff size = file.tellg();
  if (size < 0) return not_found(path + ": want a regular file");
  if (size > kMaxConfigBytes) return data_loss(path + ": want at most 64 MiB, got " + std::to_string(size) + " bytes");
  std::string text(static_cast<std::size_t>(size), '\0');
  file.seekg(0);
  if (!file.read(text.data(), size)) return data_loss(path + ": cannot be read");
  return parse(text, path);
}

Result<HfConfig> HfConfig::parse(std::string_view text, std::string name) {
  auto state = std::make_shared<State>();
  state->path = std::move(name);
  Result<Json> json = parse_json(text);
  if (!json.ok()) return data_loss(state->path + ": " + json.status().message());
  state->object = std::move(json).value();
  if (!state->object.is_object()) {
    return data_loss(state->path + ": want a JSON object, got " + state->object.type_name());
  }
  return HfConfig(std::move(state));
}

const std::string& HfConfig::path() const { return state_->path; }
std::vector<std::string> HfConfig::keys() const {
  std::vector<std::string> out;
  for (const auto& [key, value] : state_->object.items()) out.push_back(key);
  return out;
}

bool HfConfig::has(std::string_view key) const { return state_->find(key) != nullptr; }

Status HfConfig::wrong(std::string_view key, std::string_view wanted) const {
  const auto found = state_->object.find(key);
  std::string got = "nothing";
  if (found != state_->object.end()) {
    got = found->dump(-1, ' ', true, Json::error_handler_t::replace);
    if (got.size() > 60) got = got.substr(0, 57) + "...";
  }
  return data_loss(state_->path + ": key '" + state_->prefix + std::string(key) + "': want " + std::string(wanted) +
                   ", got " + got);
}

Result<std::int32_t> HfConfig::integer_or(std::string_view key, std::int32_t fallback) const {
  const Json* value = state_->find(key);
  if (value == nullptr) return fallback;
  constexpr std::int64_t kMin = std::numeric_limits<std::int32_t>::min();
  constexpr std::int64_t kMax = std::numeric_limits<std::int32_t>::max();
  if (!value->is_number_integer()) return wrong(key, "an integer");
  if (value->is_number_unsigned() && value->get<std::uint64_t>() > static_cast<std::uint64_t>(kMax)) {
    return wrong(key, "an integer of 32 bits");
  }
  const std::int64_t number = value->get<std::int64_t>();
  if (number < kMin || number > kMax) return wrong(key, "an integer of 32 bits");
  return static_cast<std::int32_t>(number);
}

Result<std::int32_t> HfConfig::count(std::string_view key) const {
  if (!has(key)) return wrong(key, "a positive integer");
  return count_or(key, 0);
}

Result<std::int32_t> HfConfig::count_or(std::string_view key, std::int32_t fallback) const {
  if (!has(key)) return fallback;
  QUIRE_ASSIGN_OR_RETURN(const std::int32_t value, integer_or(key, 0));
  if (value < 1) return wrong(key, "a positive integer");
  return value;
}

Result<double> HfConfig::number(std::string_view key) const {
  if (!has(key)) return wrong(key, "a number");
  return number_or(key, 0.0);
}

Result<double> HfConfig::number_or(std::string_view key, double fallback) const {
  const Json* value = state_->find(key);
  if (value == nullptr) return fallback;
  if (!value->is_number()) return wrong(key, "a number");
  const double number = value->get<double>();
  if (!std::isfinite(number)) return wrong(key, "a finite number");
  return number;
}

Result<bool> HfConfig::flag_or(std::string_view key, bool fallback) const {
  const Json* value = state_->find(key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) return wrong(key, "true or false");
  return value->get<bool>();
}

Result<std::string> HfConfig::text(std::string_view key) const {
  if (!has(key)) return wrong(key, "a string");
  return text_or(key, "");
}

Result<std::string> HfConfig::text_or(std::string_view key, std::string_view fallback) const {
  const Json* value = state_->find(key);
  if (value == nullptr) return std::string(fallback);
  if (!value->is_string()) return wrong(key, "a string");
  return value->get<std::string>();
}

Result<std::vector<std::int32_t>> HfConfig::integers(std::string_view key) const {
  std::vector<std::int32_t> out;
  const Json* value = state_->find(key);
  if (value == nullptr) return out;
  const auto add = [&out](const Json& item) {
    if (!item.is_number_integer()) return false;
    if (item.is_number_unsigned() && item.get<std::uint64_t>() > 0x7fffffffu) return false;
    const std::int64_t number = item.get<std::int64_t>();
    if (number < std::numeric_limits<std::int32_t>::min() || number > std::numeric_limits<std::int32_t>::max()) {
      return false;
    }
    out.push_back(static_cast<std::int32_t>(number));
    return true;
  };
  if (!value->is_array()) {
    if (!add(*value)) return wrong(key, "an integer or a list of integers");
    return out;
  }
  for (const Json& item : *value) {
    if (!add(item)) return wrong(key, "an integer or a list of integers");
  }
  return out;
}

Result<std::vector<std::string>> HfConfig::texts(std::string_view key) const {
  std::vector<std::string> out;
  const Json* value = state_->find(key);
  if (value == nullptr) return out;
  if (!value->is_array()) return wrong(key, "a list of strings");
  for (const Json& item : *value) {
    if (!item.is_string()) return wrong(key, "a list of strings");
    out.push_back(item.get<std::string>());
  }
  return out;
}

Result<HfConfig> HfConfig::object(std::string_view key) const {
  const Json* value = state_->find(key);
  if (value == nullptr || !value->is_object()) return wrong(key, "an object");
  auto inner = std::make_shared<State>();
  inner->path = state_->path;
  inner->prefix = state_->prefix + std::string(key) + ".";
  inner->object = *value;
  return HfConfig(std::move(inner));
}

Status HfConfig::expect_text(std::string_view key, std::string_view wanted) const {
  QUIRE_ASSIGN_OR_RETURN(const std::string value, text_or(key, wanted));
  return value == wanted ? Status() : wrong(key, "\"" + std::string(wanted) + "\", the supported value");
}

Status HfConfig::expect_flag(std::string_view key, bool wanted) const {
  QUIRE_ASSIGN_OR_RETURN(const bool value, flag_or(key, wanted));
  return value == wanted ? Status() : wrong(key, wanted ? "true, the supported value" : "false, the supported value");
}

Status HfConfig::expect_number(std::string_view key, double wanted) const {
  QUIRE_ASSIGN_OR_RETURN(const double value, number_or(key, wanted));
  return value == wanted ? Status() : wrong(key, Json(wanted).dump() + ", the supported value");
}

Status HfConfig::check_all_read(std::span<const std::string_view> harmless) const {
  for (const auto& [key, value] : state_->object.items()) {
    if (value.is_null() || state_->read.contains(key)) continue;
    if (std::find(kCommonKeys.begin(), kCommonKeys.end(), key) != kCommonKeys.end()) continue;
    if (std::find(harmless.begin(), harmless.end(), key) != harmless.end()) continue;
    return unsupported(state_->path + ": key '" + state_->prefix + key +
                       "': want a key whose meaning is known, got one that may change the result");
  }
  return {};
}

}  // namespace quire
