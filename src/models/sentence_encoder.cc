// Implements SentenceEncoder.
#include "models/sentence_encoder.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "io/hf_config.h"
#include "io/json_text.h"
#include "io/mapped_file.h"

namespace quire {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

struct Module {
  std::string type;  // behind the last dot
  std::string path;
};

Result<std::vector<Module>> read_modules(const std::string& path) {
  QUIRE_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::open(path));
  const auto* text = reinterpret_cast<const char*>(file.bytes().data());
  const Result<Json> parsed = parse_json({text, file.bytes().size()});
  if (!parsed.ok()) return data_loss(path + ": " + parsed.status().message());
  const Json& json = *parsed;
  if (!json.is_array()) return data_loss(path + ": want a JSON list of modules");
  std::vector<Module> out;
  for (const Json& entry : json) {
    const auto text_of = [&entry](const char* key) -> std::optional<std::string> {
      if (!entry.is_object() || !entry.contains(key) || !entry[key].is_string()) return std::nullopt;
      return entry[key].get<std::string>();
    };
    const std::optional<std::string> type = text_of("type");
    const std::optional<std::string> place = text_of("path");
    if (!type || !place) return data_loss(path + ": keys 'type' and 'path' of a module: want text");
    const fs::path inside(*place);
    if (inside.is_absolute() || std::find(inside.begin(), inside.end(), "..") != inside.end()) {
      return data_loss(path + ": key 'path': want a folder inside, got '" + *place + "'");
    }
    out.push_back({type->substr(type->rfind('.') + 1), *place});
  }
  return out;
}

// Keys that say nothing about a lone text.
constexpr std::array<std::string_view, 1> kPoolingKeys = {"include_prompt"};

}  // namespace

// Returns the transformer's folder.
Result<std::string> SentenceEncoder::load_modules(const std::string& folder) {
  const std::string path = (fs::path(folder) / "modules.json").string();
  std::error_code error;
  if (!fs::exists(path, error)) {
    normalize_ = true;
    return folder;
  }
  std::string transformer;
  QUIRE_ASSIGN_OR_RETURN(const std::vector<Module> modules, read_modules(path));
  std::string order;
  for (const Module& module : modules) {
    order += (order.empty() ? "" : ", ") + module.type;
    const std::string inside = (fs::path(folder) / module.path).string();
    if (module.type == "Transformer") transformer = inside;
    if (module.type == "Pooling") QUIRE_RETURN_IF_ERROR(load_pooling((fs::path(inside) / "config.json").string()));
  }
  if (order != "Transformer, Pooling" && order != "Transformer, Pooling, Normalize") {
    return unsupported(path + ": want the modules Transformer, Pooling and perhaps Normalize, got " +
                       (order.empty() ? "none" : order));
  }
  normalize_ = modules.size() == 3;
  return transformer;
}

std::string SentenceEncoder::tokenizer_path() const {
  return (fs::path(checkpoint_->folder()) / "tokenizer.json").string();
}

Status SentenceEncoder::load_pooling(const std::string& path) {
  QUIRE_ASSIGN_OR_RETURN(const HfConfig config, HfConfig::open(path));
  QUIRE_ASSIGN_OR_RETURN(pooled_width_, config.count_or("word_embedding_dimension", 0));
  QUIRE_ASSIGN_OR_RETURN(pooled_width_, config.count_or("embedding_dimension", pooled_width_));
  for (const char* key : {"pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens",
                          "pooling_mode_weightedmean_tokens", "pooling_mode_lasttoken"}) {
    QUIRE_RETURN_IF_ERROR(config.expect_flag(key, false));
  }
  QUIRE_ASSIGN_OR_RETURN(const std::string name, config.text_or("pooling_mode", ""));
  QUIRE_ASSIGN_OR_RETURN(const bool mean, config.flag_or("pooling_mode_mean_tokens", name == "mean"));
  QUIRE_ASSIGN_OR_RETURN(const bool first, config.flag_or("pooling_mode_cls_token", name == "cls"));
  if (mean == first) return unsupported(path + ": key 'pooling_mode': want either mean or cls");
  pooling_ = mean ? Pooling::kMean : Pooling::kFirstToken;
  return config.check_all_read(kPoolingKeys);
}

Status SentenceEncoder::load_limits(const std::string& path) {
  max_seq_length_ = bert_->info().max_model_len;
  std::error_code error;
  if (!fs::exists(path, error)) return {};
  QUIRE_ASSIGN_OR_RETURN(const HfConfig config, HfConfig::open(path));
  QUIRE_ASSIGN_OR_RETURN(const std::int32_t limit, config.count_or("max_seq_length", max_seq_length_));
  QUIRE_RETURN_IF_ERROR(config.expect_flag("do_lower_case", false));
  max_seq_length_ = std::min(max_seq_length_, limit);
  return config.check_all_read();
}

Result<std::unique_ptr<SentenceEncoder>> SentenceEncoder::load(const std::string& folder, const ModelOptions& options) {
  std::unique_ptr<SentenceEncoder> out(new SentenceEncoder);
  QUIRE_ASSIGN_OR_RETURN(const std::string transformer, out->load_modules(folder));
  QUIRE_ASSIGN_OR_RETURN(Checkpoint checkpoint, Checkpoint::open(transformer));
  out->checkpoint_ = std::make_unique<Checkpoint>(std::move(checkpoint));
  QUIRE_ASSIGN_OR_RETURN(out->bert_, BertEncoder::load(*out->checkpoint_, options));
  QUIRE_RETURN_IF_ERROR(out->load_limits((fs::path(transformer) / "sentence_bert_config.json").string()));
  out->max_tokens_ = options.max_tokens;
  QUIRE_RETURN_IF_ERROR(out->check_limits());
  return out;
}

Status SentenceEncoder::check_limits() const {
  if (pooled_width_ != 0 && pooled_width_ != width()) {
    return unsupported(checkpoint_->folder() + ": key 'word_embedding_dimension' of the pooling: want " +
                       std::to_string(width()) + ", got " + std::to_string(pooled_width_));
  }
  if (max_tokens_ < max_seq_length_) {
    return invalid_argument("max_tokens: want at least " + std::to_string(max_seq_length_) + ", got " +
                            std::to_string(max_tokens_));
  }
  return {};
}

void SentenceEncoder::pool(std::span<const float> hidden, float* out) const {
  const auto size = static_cast<std::size_t>(width());
  const std::size_t rows = pooling_ == Pooling::kMean ? hidden.size() / size : 1;
  double squares = 0.0;
  for (std::size_t i = 0; i < size; ++i) {
    double sum = 0.0;
    for (std::size_t row = 0; row < rows; ++row) sum += hidden[row * size + i];
    out[i] = static_cast<float>(sum / static_cast<double>(rows));
    squares += double{out[i]} * out[i];
  }
  if (!normalize_) return;
  const double length = std::max(std::sqrt(squares), 1e-12);
  for (std::size_t i = 0; i < size; ++i) out[i] = static_cast<float>(out[i] / length);
}

Status SentenceEncoder::embed_batch(std::span<const std::vector<std::int32_t>> texts, float* out) {
  std::vector<std::int32_t> tokens;
  std::vector<std::int32_t> starts = {0};
  for (const std::vector<std::int32_t>& text : texts) {
    tokens.insert(tokens.end(), text.begin(), text.end());
    starts.push_back(static_cast<std::int32_t>(tokens.size()));
  }
  QUIRE_ASSIGN_OR_RETURN(const std::span<const float> hidden, bert_->forward({.tokens = tokens, .starts = starts}));
  const auto size = static_cast<std::size_t>(width());
  for (std::size_t i = 0; i < texts.size(); ++i) {
    pool(hidden.subspan(static_cast<std::size_t>(starts[i]) * size, texts[i].size() * size), out + i * size);
  }
  return {};
}

Result<std::vector<float>> SentenceEncoder::embed(std::span<const std::vector<std::int32_t>> texts) {
  const auto size = static_cast<std::size_t>(width());
  for (const std::vector<std::int32_t>& text : texts) {
    if (!text.empty() && text.size() <= static_cast<std::size_t>(max_seq_length_)) continue;
    return out_of_range("text: want 1 to " + std::to_string(max_seq_length_) + " tokens, got " +
                        std::to_string(text.size()));
  }
  std::vector<float> out(texts.size() * size);
  for (std::size_t first = 0; first < texts.size();) {
    std::size_t last = first;
    std::int64_t tokens = 0;
    while (last < texts.size()) {
      tokens += static_cast<std::int64_t>(texts[last].size());
      if (last > first && tokens > max_tokens_) break;
      ++last;
    }
    QUIRE_RETURN_IF_ERROR(embed_batch(texts.subspan(first, last - first), out.data() + first * size));
    first = last;
  }
  return out;
}

Result<std::vector<std::int32_t>> tokenize_cut(const Tokenizer& tokenizer, std::string_view text, std::int32_t most) {
  QUIRE_ASSIGN_OR_RETURN(std::vector<std::int32_t> ids, tokenizer.encode(text, AddSpecialTokens::kYes));
  const auto limit = static_cast<std::size_t>(most);
  if (ids.size() <= limit) return ids;
  QUIRE_ASSIGN_OR_RETURN(const std::vector<std::int32_t> plain, tokenizer.encode(text, AddSpecialTokens::kNo));
  const auto inside = std::search(ids.begin(), ids.end(), plain.begin(), plain.end());
  const std::size_t special = ids.size() - std::min(ids.size(), plain.size());
  if (inside == ids.end() || special >= limit) {
    return internal_error("text: want at most " + std::to_string(limit) + " tokens, got one that cannot be cut");
  }
  const auto kept = static_cast<std::ptrdiff_t>(limit - special);
  ids.erase(inside + kept, inside + static_cast<std::ptrdiff_t>(plain.size()));
  return ids;
}

}  // namespace quire
