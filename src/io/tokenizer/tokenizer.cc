// Tokenizer: reads tokenizer.json and runs its pipeline.
#include "io/tokenizer/tokenizer.h"

#include <algorithm>
#include <utility>

#include "io/json_text.h"
#include "io/mapped_file.h"
#include "io/tokenizer/added_tokens.h"
#include "io/tokenizer/decoder.h"
#include "io/tokenizer/model.h"
#include "io/tokenizer/normalizer.h"
#include "io/tokenizer/pre_tokenizer.h"
#include "io/tokenizer/unicode.h"

namespace quire {
namespace {

using tokenizer::Json;

constexpr std::size_t kLargestFile = std::size_t{256} << 20;

// Ids that the post-processor puts around a text.
struct Frame {
  std::vector<std::int32_t> before;
  std::vector<std::int32_t> behind;
};

Result<std::int32_t> framed_id(const Json& pair, const std::string& where) {
  if (!pair.is_array() || pair.size() != 2 || !pair[1].is_number_integer())
    return data_loss(where + ": want [token, id]");
  return pair[1].get<std::int32_t>();
}

Status read_template(const Json& json, Frame& frame) {
  const auto single = json.find("single");
  const auto specials = json.find("special_tokens");
  if (single == json.end() || !single->is_array()) return data_loss("post_processor.single: want an array");
  bool seen_sequence = false;
  for (const Json& part : *single) {
    if (part.is_object() && part.contains("Sequence")) {
      if (seen_sequence) return unsupported("post_processor.single: want one Sequence, got two");
      seen_sequence = true;
      continue;
    }
    const Json* name = part.is_object() && part.contains("SpecialToken") ? &part["SpecialToken"] : nullptr;
    if (name == nullptr || !name->is_object() || !name->contains("id") || !(*name)["id"].is_string()) {
      return data_loss("post_processor.single: want Sequence or SpecialToken entries, got " + part.dump());
    }
    const std::string token = (*name)["id"].get<std::string>();
    const bool known = specials != json.end() && specials->is_object() && specials->contains(token);
    const Json* ids = known && (*specials)[token].is_object() && (*specials)[token].contains("ids")
                          ? &(*specials)[token]["ids"]
                          : nullptr;
    if (ids == nullptr || !ids->is_array())
      return data_loss("post_processor.special_tokens['" + token + "'].ids: want an array");
    for (const Json& id : *ids) {
      if (!id.is_number_integer())
        return data_loss("post_processor.special_tokens['" + token + "'].ids: want integers");
      (seen_sequence ? frame.behind : frame.before).push_back(id.get<std::int32_t>());
    }
  }
  return {};
}

Status read_post_processor(const Json& json, Frame& frame, int depth = 0) {
  if (json.is_null()) return {};
  if (depth > 4) return data_loss("post_processor: want at most 4 nested sequences");
  QUIRE_ASSIGN_OR_RETURN(const std::string type, tokenizer::type_of(json, "post_processor"));
  if (type == "ByteLevel") return {};  // changes offsets only
  if (type == "TemplateProcessing") return read_template(json, frame);
  if (type == "BertProcessing" || type == "RobertaProcessing") {
    QUIRE_ASSIGN_OR_RETURN(const std::int32_t cls, framed_id(json.value("cls", Json()), "post_processor.cls"));
    QUIRE_ASSIGN_OR_RETURN(const std::int32_t sep, framed_id(json.value("sep", Json()), "post_processor.sep"));
    frame.before.push_back(cls);
    frame.behind.push_back(sep);
    return {};
  }
  if (type == "Sequence") {
    const auto parts = json.find("processors");
    if (parts == json.end() || !parts->is_array()) return data_loss("post_processor.processors: want an array");
    for (const Json& part : *parts) QUIRE_RETURN_IF_ERROR(read_post_processor(part, frame, depth + 1));
    return {};
  }
  return unsupported(
      "post_processor.type: want ByteLevel, TemplateProcessing, BertProcessing, RobertaProcessing or Sequence, got '" +
      type + "'");
}

Json component(const Json& file, const char* key) {
  const auto found = file.find(key);
  return found == file.end() ? Json() : *found;
}

}  // namespace

struct Tokenizer::State {
  tokenizer::Normalizer normalizer;
  tokenizer::PreTokenizer pre_tokenizer;
  tokenizer::Decoder decoder;
  std::unique_ptr<tokenizer::Model> model;
  tokenizer::AddedTokens added;
  Frame frame;
  std::vector<std::string_view> tokens;  // of the model's vocabulary, by id

  Status read(const Json& file);
  Status encode_text(std::string_view text, std::vector<std::int32_t>& ids) const;
};

Status Tokenizer::State::read(const Json& file) {
  tokenizer::Growth normalized;
  tokenizer::Growth cut;
  tokenizer::Growth decoded;
  QUIRE_ASSIGN_OR_RETURN(normalizer,
                         tokenizer::make_normalizer(component(file, "normalizer"), "normalizer", normalized));
  QUIRE_ASSIGN_OR_RETURN(pre_tokenizer,
                         tokenizer::make_pre_tokenizer(component(file, "pre_tokenizer"), "pre_tokenizer", cut));
  QUIRE_ASSIGN_OR_RETURN(model, tokenizer::make_model(component(file, "model"), "model"));
  QUIRE_ASSIGN_OR_RETURN(decoder, tokenizer::make_decoder(component(file, "decoder"), "decoder", decoded));
  QUIRE_ASSIGN_OR_RETURN(added, tokenizer::AddedTokens::from_json(file, normalizer));
  QUIRE_RETURN_IF_ERROR(read_post_processor(component(file, "post_processor"), frame));
  for (const auto& [token, id] : model->vocabulary()) {
    tokens.resize(std::max(tokens.size(), static_cast<std::size_t>(id) + 1));
    tokens[static_cast<std::size_t>(id)] = token;
  }
  return {};
}

// Text between added tokens: split once more in normalised form, cut into pieces, then ids.
Status Tokenizer::State::encode_text(std::string_view text, std::vector<std::int32_t>& ids) const {
  QUIRE_ASSIGN_OR_RETURN(const std::string normalized, normalizer(text));
  for (const tokenizer::TextPart& part : added.split(normalized, true)) {
    if (part.id >= 0) {
      ids.push_back(part.id);
      continue;
    }
    QUIRE_ASSIGN_OR_RETURN(const tokenizer::Pieces pieces, pre_tokenizer({std::string(part.text)}));
    for (const std::string& piece : pieces) {
      if (!piece.empty()) model->tokenize(piece, ids);
    }
  }
  return {};
}

Tokenizer::Tokenizer(std::unique_ptr<State> state) : state_(std::move(state)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Result<Tokenizer> Tokenizer::load(const std::string& path) {
  QUIRE_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::open(path));
  const auto bytes = file.bytes();
  return parse({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path);
}

Result<Tokenizer> Tokenizer::parse(std::string_view json, const std::string& name) {
  if (json.size() > kLargestFile)
    return data_loss(name + ": want at most 256 MiB, got " + std::to_string(json.size()) + " bytes");
  const auto named = [&](const Status& status) { return Status(status.code(), name + ": " + status.message()); };
  const Result<Json> file = parse_json(json);
  if (!file.ok()) return named(file.status());
  if (!file->is_object()) return data_loss(name + ": want a JSON object, got " + file->type_name());
  auto state = std::make_unique<State>();
  if (const Status status = state->read(*file); !status.ok()) return named(status);
  return Tokenizer(std::move(state));
}

Result<std::vector<std::int32_t>> Tokenizer::encode(std::string_view text, AddSpecialTokens add) const {
  const std::string valid = tokenizer::to_valid_utf8(text);
  std::vector<std::int32_t> ids;
  if (add == AddSpecialTokens::kYes) ids = state_->frame.before;
  for (const tokenizer::TextPart& part : state_->added.split(valid, false)) {
    if (part.id >= 0) {
      ids.push_back(part.id);
    } else {
      QUIRE_RETURN_IF_ERROR(state_->encode_text(part.text, ids));
    }
  }
  if (add == AddSpecialTokens::kYes) ids.insert(ids.end(), state_->frame.behind.begin(), state_->frame.behind.end());
  return ids;
}

Result<std::string> Tokenizer::decode(std::span<const std::int32_t> ids, SkipSpecialTokens skip) const {
  std::vector<std::string> tokens;
  for (const std::int32_t id : ids) {
    const tokenizer::AddedToken* added = state_->added.find(id);
    if (added != nullptr && added->special && skip == SkipSpecialTokens::kYes) continue;
    const auto token = id_to_token(id);
    if (!token) return out_of_range("ids: want ids of the vocabulary, got " + std::to_string(id));
    tokens.emplace_back(*token);
  }
  std::string bytes;
  for (const std::string& token : state_->decoder(std::move(tokens))) bytes += token;
  return tokenizer::to_valid_utf8(bytes);
}

std::optional<std::int32_t> Tokenizer::token_to_id(std::string_view token) const {
  for (const tokenizer::AddedToken& added : state_->added.tokens()) {
    if (added.content == token) return added.id;
  }
  const auto found = state_->model->vocabulary().find(token);
  if (found == state_->model->vocabulary().end()) return std::nullopt;
  return found->second;
}

std::optional<std::string_view> Tokenizer::id_to_token(std::int32_t id) const {
  if (const tokenizer::AddedToken* added = state_->added.find(id)) return added->content;
  if (id < 0 || static_cast<std::size_t>(id) >= state_->tokens.size()) return std::nullopt;
  const std::string_view token = state_->tokens[static_cast<std::size_t>(id)];
  return token.data() == nullptr ? std::nullopt : std::optional(token);
}

std::int32_t Tokenizer::vocab_size() const {
  auto size = static_cast<std::int32_t>(state_->tokens.size());
  for (const tokenizer::AddedToken& added : state_->added.tokens()) size = std::max(size, added.id + 1);
  return size;
}

Result<std::string> StreamDecoder::add(std::int32_t id) {
  ids_.push_back(id);
  QUIRE_ASSIGN_OR_RETURN(const std::string before, tokenizer_->decode(std::span(ids_).first(given_), skip_));
  QUIRE_ASSIGN_OR_RETURN(const std::string all, tokenizer_->decode(ids_, skip_));
  if (all.size() <= before.size() || all.ends_with("\xef\xbf\xbd")) return std::string();
  ids_.erase(ids_.begin(), ids_.begin() + static_cast<std::ptrdiff_t>(given_));
  given_ = ids_.size();
  return all.substr(before.size());
}

Result<std::string> StreamDecoder::finish() {
  QUIRE_ASSIGN_OR_RETURN(const std::string before, tokenizer_->decode(std::span(ids_).first(given_), skip_));
  QUIRE_ASSIGN_OR_RETURN(const std::string all, tokenizer_->decode(ids_, skip_));
  ids_.clear();
  given_ = 0;
  return all.size() > before.size() ? all.substr(before.size()) : std::string();
}

}  // namespace quire
