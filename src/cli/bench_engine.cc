// Implements quire bench --engine.
#include "cli/bench_engine.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iostream>
#include <map>
#include <thread>

#include "cli/bench_engine_report.h"
#include "cli/generate_summary.h"
#include "cli/json.h"
#include "cli/progress.h"
#include "io/trace.h"
#include "io/whole_file.h"

namespace quire::cli {
namespace {

using Clock = std::chrono::steady_clock;

// A request of the trace, fitted to the model.
struct ServedRequest {
  double arrival = 0.0;
  std::vector<std::int32_t> prompt;
  std::int32_t max_tokens = 1;
};

// What is known of a request while it is served.
struct Running {
  double arrival = 0.0;
  double last = 0.0;
  bool started = false;
};

constexpr std::int32_t kHashBlockTokens = 512;  // of the Mooncake trace

std::uint64_t mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// The longest requests then just fit.
double fitting_scale(std::span<const TraceRequest> trace, std::int32_t max_model_len) {
  double longest = 1.0;
  for (const TraceRequest& one : trace) {
    longest = std::max(longest, static_cast<double>(one.context_tokens) + one.generated_tokens);
  }
  return std::min(1.0, (max_model_len - 2) / longest);
}

// Tokens by chance; equal leading hash ids give equal leading tokens, so that prefixes are shared as in the trace.
std::vector<std::int32_t> make_prompt(const TraceRequest& one, std::int32_t length, double scale, std::uint64_t seed,
                                      std::int32_t vocab) {
  const auto block = std::max(1.0, std::floor(kHashBlockTokens * scale));
  std::vector<std::int32_t> out;
  for (std::int32_t i = 0; i < length; ++i) {
    const auto index = static_cast<std::size_t>(i / block);
    const bool shared = index < one.hash_ids.size();
    const std::uint64_t source = shared ? mix(static_cast<std::uint64_t>(one.hash_ids[index]) + 1) : mix(seed + 1) + 7;
    const auto place = static_cast<std::uint64_t>(shared ? i - static_cast<std::int32_t>(index * block) : i);
    out.push_back(static_cast<std::int32_t>(mix(source + place) % static_cast<std::uint64_t>(vocab)));
  }
  return out;
}

std::vector<ServedRequest> fit_trace(std::span<const TraceRequest> trace, const EngineBench& bench,
                                     const EngineInfo& info) {
  const double scale = bench.length_scale > 0.0 ? bench.length_scale : fitting_scale(trace, info.max_model_len);
  std::vector<ServedRequest> out;
  for (std::size_t i = 0; i < trace.size(); ++i) {
    const auto scaled = [scale, &info](std::int32_t tokens) {
      return std::clamp(static_cast<std::int32_t>(std::lround(tokens * scale)), 1, info.max_model_len / 2);
    };
    ServedRequest one;
    one.arrival = trace[i].arrival_seconds * bench.time_scale;
    one.prompt = make_prompt(trace[i], scaled(trace[i].context_tokens), scale, bench.options.seed + i, info.vocab_size);
    one.max_tokens = scaled(trace[i].generated_tokens);
    out.push_back(std::move(one));
  }
  return out;
}

Status check_bench(const EngineBench& bench) {
  if (bench.options.model.empty()) return invalid_argument("model: want the folder of a checkpoint with --engine");
  if (bench.trace.empty()) return invalid_argument("trace: want a trace file with --engine");
  if (bench.requests < 1) return invalid_argument("requests: want at least 1, got " + std::to_string(bench.requests));
  if (!(bench.time_scale >= 0.0)) return invalid_argument("time-scale: want at least 0");
  if (!(bench.length_scale >= 0.0)) return invalid_argument("length-scale: want at least 0");
  return {};
}

class Replay {
 public:
  Replay(Engine& engine, const EngineBench& bench, std::optional<TreePolicy> tree)
      : engine_(&engine), bench_(&bench), tree_(std::move(tree)) {}

  Status run(std::vector<ServedRequest> requests, ServedTrace& served) {
    Progress progress("serving", requests.size());
    start_ = Clock::now();
    std::size_t next = 0;
    while (next < requests.size() || engine_->has_work()) {
      while (next < requests.size() && requests[next].arrival <= now()) {
        progress.step("request " + std::to_string(next + 1));
        QUIRE_RETURN_IF_ERROR(add(requests[next++]));
      }
      if (!engine_->has_work()) {
        std::this_thread::sleep_for(std::chrono::duration<double>(requests[next].arrival - now()));
        continue;
      }
      QUIRE_ASSIGN_OR_RETURN(const std::vector<RequestUpdate> updates, engine_->step());
      for (const RequestUpdate& update : updates) record(update, served);
    }
    served.seconds = now();
    return {};
  }

 private:
  double now() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

  Status add(ServedRequest& one) {
    GenerateRequest request{.prompt = std::move(one.prompt)};
    request.sampling = sampling_params(bench_->options, engine_->info().defaults);
    request.sampling.max_tokens = one.max_tokens;
    request.sampling.eos = EosRule::kIgnore;
    request.tree = tree_;
    QUIRE_ASSIGN_OR_RETURN(const RequestId id, engine_->add(std::move(request)));
    running_[id].arrival = one.arrival;
    return {};
  }

  void record(const RequestUpdate& update, ServedTrace& served) {
    Running& one = running_.at(update.id);
    const double time = now();
    auto count = update.tokens.size();
    if (!one.started && count > 0) {
      served.first_token_seconds.push_back(time - one.arrival);
      one.started = true;
      one.last = time;
      --count;  // what came with the first token came at once
      served.inter_token_seconds.insert(served.inter_token_seconds.end(), count, 0.0);
    } else if (count > 0) {
      const double gap = (time - one.last) / static_cast<double>(count);
      served.inter_token_seconds.insert(served.inter_token_seconds.end(), count, gap);
      one.last = time;
    }
    if (update.finish == FinishReason::kNone) return;
    served.request_seconds.push_back(time - one.arrival);
    ++served.requests;
    running_.erase(update.id);
  }

  Engine* engine_;
  const EngineBench* bench_;
  std::optional<TreePolicy> tree_;
  Clock::time_point start_;
  std::map<RequestId, Running> running_;
};

void print(const ServedTrace& served, const EngineInfo& info, Format format) {
  const Table table = latency_table(served);
  switch (format) {
    case Format::kText:
      std::cout << served.title << '\n'
                << throughput_line(served) << "\n\n"
                << text_table(table) << '\n'
                << summary_text(info, served.stats);
      return;
    case Format::kMarkdown:
      std::cout << throughput_line(served) << "\n\n" << markdown_table(table);
      return;
    case Format::kCsv:
      std::cout << csv_table(table);
      return;
    case Format::kJson:
      std::cout << json_table(table);
      return;
  }
}

}  // namespace

void add_engine_bench_options(Usage& usage, EngineBench& bench) {
  GenerateOptions& options = bench.options;
  const std::vector<Option> more = {
      {"--engine", &bench.engine, "Serve the requests of --trace with a checkpoint, at the times at which they came"},
      {"--model", &options.model, "--engine: folder of the checkpoint"},
      {"--draft", &options.draft, "--engine: folder of a draft checkpoint"},
      {"--ngram", &options.ngram, "--engine: draft from the text itself"},
      {"--tree", &options.tree, "--engine: the drafts, as in quire generate"},
      {"--requests", &bench.requests, "--engine: the first requests of the trace"},
      {"--time-scale", &bench.time_scale, "--engine: arrivals times this; 0: all at once"},
      {"--length-scale", &bench.length_scale, "--engine: lengths times this; 0: so that the longest fits the model"},
      {"--temperature", &options.temperature, "--engine: 0: the likeliest token"},
      {"--batch-invariant", &options.batch_invariant, "--engine: the same bits in any batch"},
      {"--no-prefix-caching", &options.no_prefix_caching, "--engine: do not share the cache of equal beginnings"},
      {"--max-num-seqs", &options.max_num_seqs, "--engine: requests that run at once"},
      {"--max-num-batched-tokens", &options.max_num_batched_tokens, "--engine: tokens of a step"},
  };
  usage.options.insert(usage.options.end(), more.begin(), more.end());
}

Result<int> run_engine_bench(const EngineBench& bench) {
  QUIRE_RETURN_IF_ERROR(check_bench(bench));
  QUIRE_ASSIGN_OR_RETURN(const Format format, parse_format(bench.format));
  QUIRE_ASSIGN_OR_RETURN(std::vector<TraceRequest> trace, read_trace(bench.trace));
  if (trace.size() > static_cast<std::size_t>(bench.requests)) trace.resize(static_cast<std::size_t>(bench.requests));
  QUIRE_ASSIGN_OR_RETURN(const std::optional<TreePolicy> tree, tree_policy(bench.options));
  QUIRE_ASSIGN_OR_RETURN(EngineOptions setup, engine_options(bench.options));
  QUIRE_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, Engine::create(std::move(setup)));
  ServedTrace served;
  Replay replay(*engine, bench, tree);
  QUIRE_RETURN_IF_ERROR(replay.run(fit_trace(trace, bench, engine->info()), served));
  served.stats = engine->stats();
  served.title = engine->info().architecture + " on " + engine->info().backend + ", " +
                 bench.trace.substr(bench.trace.find_last_of('/') + 1);
  print(served, engine->info(), format);
  if (!bench.svg.empty()) {
    QUIRE_RETURN_IF_ERROR(write_whole_file(bench.svg, latency_svg(served)));
  }
  return kExitOk;
}

}  // namespace quire::cli
