// quire embed: vectors of texts by a sentence encoder, one JSON object a line.
#include <charconv>
#include <fstream>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/json.h"
#include "cli/runtime_options.h"
#include "models/sentence_encoder.h"

namespace quire::cli {
namespace {

constexpr std::size_t kTextsAtOnce = 64;

struct EmbedOptions {
  std::string model;
  std::vector<std::string> texts;
  std::string file;
  std::string dtype = "float32";
  std::string backend;
  std::int32_t max_tokens = 4096;
  RuntimeOptions runtime;
};

// The texts of --text, then the lines of --file.
Result<std::vector<std::string>> read_texts(const EmbedOptions& options) {
  std::vector<std::string> out = options.texts;
  if (!options.file.empty()) {
    std::ifstream opened;
    if (options.file != "-") opened.open(options.file);
    std::istream& in = options.file == "-" ? std::cin : opened;
    if (!in) return not_found("file: want a readable file, got " + options.file);
    std::string line;
    while (std::getline(in, line)) {
      if (!line.empty() && line.back() == '\r') line.pop_back();
      out.push_back(line);
    }
    if (in.bad()) return data_loss("file: " + options.file + " could not be read to its end");
  }
  if (out.empty()) return invalid_argument("want --text or a --file with at least one line");
  return out;
}

// The double of the fewest digits that say which float this is.
double shortest(float value) {
  char digits[32];
  const auto end = std::to_chars(digits, digits + sizeof(digits), value);
  double out = 0.0;
  std::from_chars(digits, end.ptr, out);
  return out;
}

void print_line(const std::string& text, std::size_t num_tokens, std::span<const float> vector) {
  JsonValue::Array values;
  for (const float value : vector) values.emplace_back(shortest(value));
  std::cout << json_line(JsonValue::Object{
      {"text", text}, {"tokens", static_cast<std::int64_t>(num_tokens)}, {"embedding", std::move(values)}});
}

Result<std::unique_ptr<SentenceEncoder>> load(const EmbedOptions& options) {
  ModelOptions model;
  model.backend = options.backend;
  QUIRE_ASSIGN_OR_RETURN(model.dtype, parse_dtype(options.dtype));
  if (options.max_tokens < 1) return invalid_argument("max-tokens: want at least 1");
  model.max_tokens = options.max_tokens;
  QUIRE_ASSIGN_OR_RETURN(const std::vector<Runtime> runtimes, resolve_runtimes(options.runtime));
  if (runtimes.size() != 1) return invalid_argument("isa: want one instruction set, got all");
  model.runtime = runtimes.front();
  return SentenceEncoder::load(options.model, model);
}

Status run_embed(const EmbedOptions& options) {
  QUIRE_ASSIGN_OR_RETURN(const std::vector<std::string> texts, read_texts(options));
  QUIRE_ASSIGN_OR_RETURN(const std::unique_ptr<SentenceEncoder> encoder, load(options));
  QUIRE_ASSIGN_OR_RETURN(const Tokenizer tokenizer, Tokenizer::load(encoder->tokenizer_path()));
  const auto width = static_cast<std::size_t>(encoder->width());
  for (std::size_t first = 0; first < texts.size(); first += kTextsAtOnce) {
    const std::size_t count = std::min(kTextsAtOnce, texts.size() - first);
    std::vector<std::vector<std::int32_t>> ids;
    for (std::size_t i = 0; i < count; ++i) {
      QUIRE_ASSIGN_OR_RETURN(std::vector<std::int32_t> one,
                             tokenize_cut(tokenizer, texts[first + i], encoder->max_seq_length()));
      ids.push_back(std::move(one));
    }
    QUIRE_ASSIGN_OR_RETURN(const std::vector<float> vectors, encoder->embed(ids));
    for (std::size_t i = 0; i < count; ++i) {
      print_line(texts[first + i], ids[i].size(), std::span(vectors).subspan(i * width, width));
    }
  }
  if (!std::cout.flush()) return data_loss("standard output: could not be written");
  return {};
}

}  // namespace

std::function<int()> attach_embed(Usage& usage) {
  auto options = std::make_shared<EmbedOptions>();
  usage.options = {
      {"--model", &options->model, "folder of a sentence-transformers checkpoint (with modules.json)",
       Option::Presence::kRequired},
      {"--text", &options->texts, "a text; may be given more than once"},
      {"--file", &options->file, "a file with one text a line; - is the standard input"},
      {"--dtype", &options->dtype, "float32 or bfloat16: of linear layers and attention"},
      {"--backend", &options->backend, "attention backend (default: the first that can run the model)"},
      {"--max-tokens", &options->max_tokens, "tokens of one pass"},
  };
  add_runtime_options(usage, options->runtime);
  usage.footer = "Prints one JSON object a text: text, tokens (after cutting to the model's limit), embedding.";
  return [options] {
    const Status status = run_embed(*options);
    return status.ok() ? kExitOk : report(status);
  };
}

}  // namespace quire::cli
