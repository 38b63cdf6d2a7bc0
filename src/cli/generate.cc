// quire generate: text from a checkpoint, streamed for one prompt, as JSON lines for a batch.
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>

#include "cli/command.h"
#include "cli/generate_batch.h"
#include "cli/generate_options.h"
#include "cli/generate_summary.h"

namespace quire::cli {
namespace {

struct GenerateFlags {
  GenerateOptions engine;
  std::string prompt;
  std::string prompt_file;
  std::string batch;
  std::string summary = "text";
  std::string name = "run";
};

Result<std::string> read_prompt(const GenerateFlags& options) {
  if (options.prompt_file.empty()) return options.prompt;
  std::ifstream opened;
  if (options.prompt_file != "-") opened.open(options.prompt_file, std::ios::binary);
  std::istream& in = options.prompt_file == "-" ? std::cin : opened;
  if (!in) return not_found("prompt-file: want a readable file, got " + options.prompt_file);
  return std::string(std::istreambuf_iterator<char>(in), {});
}

Status check_sources(const GenerateFlags& options) {
  const int sources =
      (options.prompt.empty() ? 0 : 1) + (options.prompt_file.empty() ? 0 : 1) + (options.batch.empty() ? 0 : 1);
  if (sources != 1) return invalid_argument("want one of --prompt, --prompt-file and --batch");
  for (const char* known : {"text", "csv", "none"}) {
    if (options.summary == known) return {};
  }
  return invalid_argument("summary: want text, csv or none, got " + options.summary);
}

// Prints the prompt's continuation as it comes.
Status stream_one(Engine& engine, const GenerateFlags& options, const std::optional<TreePolicy>& tree) {
  QUIRE_ASSIGN_OR_RETURN(const std::string prompt, read_prompt(options));
  GenerateRequest request;
  QUIRE_ASSIGN_OR_RETURN(request.prompt, engine.encode(prompt));
  request.sampling = sampling_params(options.engine, engine.info().defaults);
  request.tree = tree;
  QUIRE_RETURN_IF_ERROR(engine.add(std::move(request)).status());
  while (engine.has_work()) {
    QUIRE_ASSIGN_OR_RETURN(const std::vector<RequestUpdate> updates, engine.step());
    for (const RequestUpdate& update : updates) std::cout << update.text << std::flush;
    if (!std::cout) return data_loss("standard output: could not be written");
  }
  std::cout << std::endl;
  return {};
}

// Prints each answer when it is complete.
Status run_batch(Engine& engine, const GenerateFlags& options, const std::optional<TreePolicy>& tree) {
  const SamplingParams defaults = sampling_params(options.engine, engine.info().defaults);
  QUIRE_ASSIGN_OR_RETURN(const std::vector<BatchLine> lines, read_batch(options.batch, defaults));
  std::map<RequestId, BatchAnswer> answers;
  for (std::size_t i = 0; i < lines.size(); ++i) {
    GenerateRequest request;
    QUIRE_ASSIGN_OR_RETURN(request.prompt, engine.encode(lines[i].prompt));
    const auto prompt_tokens = static_cast<std::int64_t>(request.prompt.size());
    request.sampling = lines[i].sampling;
    request.tree = tree;
    if (!lines[i].tree.empty()) {
      QUIRE_ASSIGN_OR_RETURN(request.tree, parse_tree_policy(lines[i].tree));
    }
    const Result<RequestId> id = engine.add(std::move(request));
    if (!id.ok()) {
      return Status(id.status().code(),
                    options.batch + ": request " + std::to_string(i) + ": " + id.status().message());
    }
    answers[*id] = {.index = i, .prompt = lines[i].prompt, .text = {}, .prompt_tokens = prompt_tokens};
  }
  while (engine.has_work()) {
    QUIRE_ASSIGN_OR_RETURN(const std::vector<RequestUpdate> updates, engine.step());
    for (const RequestUpdate& update : updates) {
      BatchAnswer& answer = answers.at(update.id);
      answer.text += update.text;
      answer.tokens += static_cast<std::int64_t>(update.tokens.size());
      answer.finish = update.finish;
      if (update.finish != FinishReason::kNone) std::cout << answer_line(answer) << std::flush;
    }
    if (!std::cout) return data_loss("standard output: could not be written");
  }
  return {};
}

void print_summary(const Engine& engine, const GenerateFlags& options) {
  if (options.summary == "text") std::cerr << '\n' << summary_text(engine.info(), engine.stats());
  if (options.summary != "csv") return;
  const SummaryLabels labels{.name = options.name, .kv_cache_dtype = options.engine.kv_cache_dtype};
  std::cerr << csv_table(summary_table(labels, engine.info(), engine.stats()));
}

Status run_generate(const GenerateFlags& options) {
  QUIRE_RETURN_IF_ERROR(check_sources(options));
  QUIRE_ASSIGN_OR_RETURN(const std::optional<TreePolicy> tree, tree_policy(options.engine));
  QUIRE_ASSIGN_OR_RETURN(EngineOptions engine_setup, engine_options(options.engine));
  QUIRE_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, Engine::create(std::move(engine_setup)));
  QUIRE_RETURN_IF_ERROR(options.batch.empty() ? stream_one(*engine, options, tree) : run_batch(*engine, options, tree));
  print_summary(*engine, options);
  return {};
}

}  // namespace

std::function<int()> attach_generate(Usage& usage) {
  auto options = std::make_shared<GenerateFlags>();
  add_engine_options(usage, options->engine);
  const std::vector<Option> sources = {
      {"--prompt", &options->prompt, "The text to continue"},
      {"--prompt-file", &options->prompt_file, "A file with the text; - is the standard input"},
      {"--batch", &options->batch,
       "A file of JSON lines: prompt and, if wanted, max_tokens, temperature, seed, stop ..."},
  };
  usage.options.insert(usage.options.end(), sources.begin(), sources.end());
  add_sampling_options(usage, options->engine);
  usage.options.push_back({"--summary", &options->summary, "text, csv or none, on the standard error"});
  usage.options.push_back({"--name", &options->name, "What the csv summary calls this run"});
  add_runtime_options(usage, options->engine.runtime);
  usage.footer =
      "One prompt: its continuation, as it comes. A batch: one JSON object a request, in the order in which they end.\n"
      "With drafts the text is the one that the model gives without them, in fewer steps.";
  return [options] {
    const Status status = run_generate(*options);
    return status.ok() ? kExitOk : report(status);
  };
}

}  // namespace quire::cli
