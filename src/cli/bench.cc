// quire bench: measures attention on batches, beside what this machine could do at best.
#include <omp.h>

#include <algorithm>
#include <iostream>
#include <memory>

#include "cli/bench/batch_spec.h"
#include "cli/bench/ceilings.h"
#include "cli/bench/report.h"
#ifdef QUIRE_HAS_ENGINE
#include "cli/bench_engine.h"
#endif
#include "cli/command.h"
#include "cli/machine.h"
#include "cli/progress.h"
#include "cli/runtime_options.h"
#include "cuda/timing.h"
#include "io/whole_file.h"

namespace quire::cli {
namespace {

constexpr std::int64_t kUnknownL3Bytes = std::int64_t{32} << 20;

constexpr const char* kAutoLayout = "auto";

struct BenchFlags {
  std::vector<std::string> specs;
  std::string set;
  std::string trace;
  TraceDraw draw{.num_decodes = 16};
  std::string backends = "TRITON_ATTN";
  std::string dtypes = "bfloat16";
  std::string kv_cache_dtypes = "auto";
  BenchConfig shape;
  std::int32_t head_size_v = 0;
  std::int32_t window = 0;
  double softcap = 0.0;
  std::string layout = kAutoLayout;
  std::string op = "attention";
  bool fixed_splits = false;
  bool sequential_blocks = false;
  RuntimeOptions runtime;
  TimingOptions timing;
  bool refcheck = false;
  bool no_ceilings = false;
  std::string format = "text";
  std::string svg;
};

// One batch under its spec, which stands in the rows and in the commands that repeat them.
struct NamedBatch {
  std::string spec;
  std::vector<BatchRequest> requests;
};

std::vector<std::string> split_commas(const std::string& text) {
  std::vector<std::string> out;
  for (std::size_t begin = 0;;) {
    const std::size_t comma = text.find(',', begin);
    out.push_back(text.substr(begin, comma - begin));
    if (comma == std::string::npos) return out;
    begin = comma + 1;
  }
}

Result<std::vector<NamedBatch>> collect_batches(const BenchFlags& options) {
  std::vector<std::string> specs = options.specs;
  if (!options.set.empty()) {
    QUIRE_ASSIGN_OR_RETURN(const std::vector<std::string> set, batch_set(options.set));
    specs.insert(specs.end(), set.begin(), set.end());
  }
  std::vector<NamedBatch> out;
  for (const std::string& spec : specs) {
    QUIRE_ASSIGN_OR_RETURN(std::vector<BatchRequest> requests, parse_batch_spec(spec));
    out.push_back({spec, std::move(requests)});
  }
  if (!options.trace.empty()) {
    QUIRE_ASSIGN_OR_RETURN(const std::vector<TraceRequest> trace, read_trace(options.trace));
    QUIRE_ASSIGN_OR_RETURN(std::vector<BatchRequest> requests, draw_batch(trace, options.draw));
    if (requests.empty()) return invalid_argument("decodes, prefills: want at least one request of the trace");
    out.push_back({batch_spec_string(requests), std::move(requests)});
  }
  if (out.empty()) return invalid_argument("batches: want batch specs, --set or --trace");
  return out;
}

// Everything but the batch, as options again; what is as the options' defaults is left out, except for the runtime,
// whose default depends on the machine.
std::string shape_arguments(const BenchConfig& config, const BenchFlags& options) {
  const BenchConfig plain;
  std::string out;
  const auto add = [&out](bool wanted, const std::string& name, const std::string& value) {
    if (wanted) out += " --" + name + (value.empty() ? "" : " " + value);
  };
  add(config.backend != plain.backend, "backend", config.backend);
  add(config.dtype != plain.dtype, "dtype", std::string(dtype_name(config.dtype)));
  add(config.kv_cache_dtype != plain.kv_cache_dtype, "kv-cache-dtype",
      std::string(kv_cache_dtype_name(config.kv_cache_dtype)));
  add(config.num_heads != plain.num_heads, "num-heads", std::to_string(config.num_heads));
  add(config.num_kv_heads != plain.num_kv_heads, "num-kv-heads", std::to_string(config.num_kv_heads));
  add(config.head_size != plain.head_size, "head-size", std::to_string(config.head_size));
  add(config.head_size_v != config.head_size, "head-size-v", std::to_string(config.head_size_v));
  add(config.block_size != plain.block_size, "block-size", std::to_string(config.block_size));
  add(config.layout != plain.layout, "layout", std::string(kv_cache_layout_name(config.layout)));
  add(options.window > 0, "window", std::to_string(options.window));
  add(options.softcap > 0, "softcap", std::to_string(options.softcap));
  add(config.op != plain.op, "op", std::string(bench_op_name(config.op)));
  add(config.common_prefix > 0, "common-prefix", std::to_string(config.common_prefix));
  add(config.tree_nodes > 0, "tree-nodes", std::to_string(config.tree_nodes));
  add(options.fixed_splits, "fixed-splits", "");
  add(config.alibi, "alibi", "");
  add(config.sinks, "sinks", "");
  add(options.sequential_blocks, "sequential-blocks", "");
  add(config.seed != plain.seed, "seed", std::to_string(config.seed));
  add(config.runtime.backplane != Backplane::kCpu, "device", std::string(backplane_name(config.runtime.backplane)));
  add(config.runtime.backplane == Backplane::kCpu, "isa", std::string(isa_name(config.runtime.isa)));
  add(config.runtime.num_threads > 0, "threads", std::to_string(config.runtime.num_threads));
  return out;
}

Result<BenchConfig> base_config(const BenchFlags& options) {
  BenchConfig config = options.shape;
  config.head_size_v = options.head_size_v > 0 ? options.head_size_v : config.head_size;
  if (options.layout != kAutoLayout) {
    QUIRE_ASSIGN_OR_RETURN(config.layout, parse_kv_cache_layout(options.layout));
  }
  if (options.window < 0 || options.softcap < 0) return invalid_argument("window, softcap: want >= 0");
  if (options.window > 0) config.sliding_window = options.window;
  if (options.softcap > 0) config.logits_soft_cap = static_cast<float>(options.softcap);
  config.block_order = options.sequential_blocks ? BlockOrder::kSequential : BlockOrder::kShuffled;
  config.seed = options.draw.seed;
  QUIRE_ASSIGN_OR_RETURN(config.op, parse_bench_op(options.op));
  if (config.tree_nodes < 0) return invalid_argument("tree: want >= 0 nodes, got " + std::to_string(config.tree_nodes));
  const std::int64_t l3_bytes = read_machine().l3_bytes;
  config.cold_bytes = 2 * (l3_bytes > 0 ? l3_bytes : kUnknownL3Bytes);
  return config;
}

// All combinations of the listed backends, dtypes, cache dtypes and runtimes.
Result<std::vector<BenchConfig>> collect_configs(const BenchFlags& options, const std::vector<Runtime>& runtimes) {
  QUIRE_ASSIGN_OR_RETURN(BenchConfig config, base_config(options));
  std::vector<BenchConfig> out;
  for (const std::string& backend : split_commas(options.backends)) {
    QUIRE_ASSIGN_OR_RETURN(const AttentionBackend* const found, find_backend(backend));
    config.backend = std::string(found->name());
    for (const std::string& dtype : split_commas(options.dtypes)) {
      QUIRE_ASSIGN_OR_RETURN(config.dtype, parse_dtype(dtype));
      for (const std::string& kv_cache_dtype : split_commas(options.kv_cache_dtypes)) {
        QUIRE_ASSIGN_OR_RETURN(config.kv_cache_dtype, parse_kv_cache_dtype(kv_cache_dtype));
        for (const Runtime& runtime : runtimes) {
          config.runtime = runtime;
          // Graph replays flush the cache, so that one copy of the batch is cold each time.
          if (runtime.backplane == Backplane::kCuda) config.cold_bytes = 0;
          if (options.layout == kAutoLayout) config.layout = fastest_kv_cache_layout(*found, runtime.backplane);
          out.push_back(config);
        }
      }
    }
  }
  return out;
}

Status measure_row(const NamedBatch& batch, const BenchConfig& config, const BenchFlags& options, BenchRow& row) {
  QUIRE_ASSIGN_OR_RETURN(const std::unique_ptr<BenchProblem> problem, BenchProblem::create(config, batch.requests));
  QUIRE_ASSIGN_OR_RETURN(row.timing, measure(*problem, options.timing));
  row.work = problem->work();
  row.copies = problem->num_copies();
  QUIRE_ASSIGN_OR_RETURN(row.copy_seconds, measure_copy(*problem));
  if (options.refcheck) {
    QUIRE_ASSIGN_OR_RETURN(row.refcheck, check_against_reference(*problem));
  }
  return {};
}

BenchRow make_row(const NamedBatch& batch, const BenchConfig& config, const BenchFlags& options) {
  BenchRow row;
  row.batch = batch.spec;
  row.backend = config.backend;
  row.dtype = dtype_name(config.dtype);
  row.kv_cache_dtype = kv_cache_dtype_name(config.kv_cache_dtype);
  row.runtime = runtime_name(config.runtime);
  row.command = "quire bench " + batch.spec + shape_arguments(config, options);
  row.error = measure_row(batch, config, options, row).message();
  return row;
}

// Measured before and after the rows; the higher rates count, so that a moment in which others took the memory does not
// flatter the rows.
Status raise_ceilings(const Runtime& runtime, const BenchFlags& options, Progress& progress, Ceilings& ceilings) {
  progress.step("the machine's ceilings");
  if (runtime.backplane == Backplane::kReference || options.no_ceilings) return {};
  QUIRE_ASSIGN_OR_RETURN(const Ceilings again, measure_machine(runtime));
  ceilings.float32_flops = std::max(ceilings.float32_flops, again.float32_flops);
  ceilings.bfloat16_flops = std::max(ceilings.bfloat16_flops, again.bfloat16_flops);
  ceilings.dram_bytes = std::max(ceilings.dram_bytes, again.dram_bytes);
  ceilings.copy_bytes = std::max(ceilings.copy_bytes, again.copy_bytes);
  ceilings.launch_seconds = again.launch_seconds;
  return {};
}

int num_threads(const Runtime& runtime) {
  return runtime.num_threads > 0 ? runtime.num_threads : omp_get_max_threads();
}

std::string machine_line(const Runtime& runtime) {
  if (runtime.backplane == Backplane::kCuda) {
    const Result<cuda::DeviceInfo> device = cuda::device_info();
    if (device.ok()) return device->name + ", " + std::to_string(device->multiprocessors) + " multiprocessors";
  }
  return read_machine().cpu_model + ", " + std::to_string(num_threads(runtime)) + " threads";
}

std::string shape_line(const std::vector<BenchConfig>& configs) {
  const BenchConfig& config = configs.front();
  const bool is_one = std::all_of(configs.begin(), configs.end(),
                                  [&](const BenchConfig& other) { return other.layout == config.layout; });
  std::string out = std::to_string(config.num_heads) + "/" + std::to_string(config.num_kv_heads) +
                    " heads, head_size " + std::to_string(config.head_size);
  if (config.head_size_v != config.head_size) out += "/" + std::to_string(config.head_size_v);
  out += ", block_size " + std::to_string(config.block_size) + " " +
         (is_one ? std::string(kv_cache_layout_name(config.layout)) : "NHD and HND");
  return config.sliding_window ? out + ", window " + std::to_string(*config.sliding_window) : out;
}

Result<int> run_bench(const BenchFlags& options) {
  QUIRE_ASSIGN_OR_RETURN(const Format format, parse_format(options.format));
  QUIRE_ASSIGN_OR_RETURN(const std::vector<NamedBatch> batches, collect_batches(options));
  QUIRE_ASSIGN_OR_RETURN(std::vector<Runtime> runtimes, resolve_runtimes(options.runtime));
  cuda::Stream stream;
  if (runtimes.front().backplane == Backplane::kCuda) {
    QUIRE_ASSIGN_OR_RETURN(stream, cuda::Stream::create());
    runtimes.front().stream = stream.get();
    runtimes.front().splits = options.fixed_splits ? KVSplits::kFixed : KVSplits::kBalanced;
  }
  QUIRE_ASSIGN_OR_RETURN(const std::vector<BenchConfig> configs, collect_configs(options, runtimes));
  BenchContext context{.machine = machine_line(runtimes.front()), .shape = shape_line(configs), .ceilings = {}};
  std::vector<BenchRow> rows;
  pin_threads(num_threads(runtimes.front()));
  {
    Progress progress("measuring", batches.size() * configs.size() + 2);
    QUIRE_RETURN_IF_ERROR(raise_ceilings(runtimes.front(), options, progress, context.ceilings));
    for (const NamedBatch& batch : batches) {
      for (const BenchConfig& config : configs) {
        progress.step(batch.spec);
        rows.push_back(make_row(batch, config, options));
      }
    }
    QUIRE_RETURN_IF_ERROR(raise_ceilings(runtimes.front(), options, progress, context.ceilings));
  }
  for (std::size_t i = 0; i < rows.size(); ++i) {
    rows[i].roofline = roofline(configs[i % configs.size()], rows[i].work, context.ceilings, rows[i].copy_seconds);
  }
  std::cout << format_report(context, rows, format);
  if (!options.svg.empty()) QUIRE_RETURN_IF_ERROR(write_whole_file(options.svg, report_svg(context, rows)));
  const bool failed = std::any_of(rows.begin(), rows.end(), [](const BenchRow& row) {
    return !row.error.empty() || (row.refcheck && !row.refcheck->passed());
  });
  return failed ? kExitFailure : kExitOk;
}

#ifdef QUIRE_HAS_ENGINE
// The options that both forms of the benchmark take; where they are as they were, the checkpoint decides.
Result<int> run_engine(EngineBench bench, const BenchFlags& options) {
  const BenchFlags plain;
  bench.trace = options.trace;
  bench.options.seed = options.draw.seed;
  bench.options.block_size = options.shape.block_size;
  bench.options.runtime = options.runtime;
  bench.options.kv_cache_dtype = options.kv_cache_dtypes;
  if (options.backends != plain.backends) bench.options.backend = options.backends;
  if (options.dtypes != plain.dtypes) bench.options.dtype = options.dtypes;
  bench.format = options.format;
  bench.svg = options.svg;
  return run_engine_bench(bench);
}
#endif

}  // namespace

std::function<int()> attach_bench(Usage& usage) {
  auto options = std::make_shared<BenchFlags>();
  BenchConfig& shape = options->shape;
  usage.options = {
      {"specs", &options->specs, "Batches, for instance q2k (a prompt), 8q1s4k (decodes), 2q1k_32q1s1k (both)"},
      {"--set", &options->set,
       "A published set: standard_attention, standard_decode, standard_prefill, production_mix, speculative_decode"},
      {"--trace", &options->trace, "Draw a batch from an Azure CSV or Mooncake JSON lines trace"},
      {"--decodes", &options->draw.num_decodes, "Decodes drawn from the trace"},
      {"--prefills", &options->draw.num_prefills, "Prefills drawn from the trace"},
      {"--prefill-chunk", &options->draw.prefill_chunk_tokens, "New tokens of a drawn prefill at most; 0: all"},
      {"--max-seq-len", &options->draw.max_seq_len, "Cut drawn sequences to this length; 0: as they are"},
      {"--seed", &options->draw.seed, "Of the draw and of the random data"},
      {"--backend", &options->backends, "One or several, separated by commas"},
      {"--dtype", &options->dtypes, "Of queries, keys and values; one or several"},
      {"--kv-cache-dtype", &options->kv_cache_dtypes, "Of the cache; one or several"},
      {"--num-heads", &shape.num_heads, "Query heads"},
      {"--num-kv-heads", &shape.num_kv_heads, "Key and value heads"},
      {"--head-size", &shape.head_size, "Of queries and keys"},
      {"--head-size-v", &options->head_size_v, "Of values; 0: as --head-size"},
      {"--block-size", &shape.block_size, "Tokens a cache block"},
      {"--layout", &options->layout, "NHD, HND, or auto: what the device reads fastest of those that the backend has"},
      {"--window", &options->window, "Sliding window in tokens; 0: none"},
      {"--softcap", &options->softcap, "Cap of the logits; 0: none"},
      {"--alibi", &shape.alibi, "Add ALiBi"},
      {"--sinks", &shape.sinks, "Add attention sinks"},
      {"--op", &options->op, "attention, cache-update, rope-cache-update (of the batch's new tokens) or cascade"},
      {"--common-prefix", &shape.common_prefix, "Tokens at the start of all requests that are the same blocks"},
      {"--tree-nodes", &shape.tree_nodes, "Requests of so many new tokens verify a binary tree of them; 0: none"},
      {"--fixed-splits", &options->fixed_splits, "Cut keys where no row depends on its batch (cuda only)"},
      {"--sequential-blocks", &options->sequential_blocks, "Blocks in ascending order instead of shuffled"},
      {"--seconds", &options->timing.min_seconds, "Measure each row at least so long"},
      {"--repeats", &options->timing.min_repeats, "and at least so often"},
      {"--no-ceilings", &options->no_ceilings, "Do not measure the machine; saves seconds, and there is no roofline"},
      {"--refcheck", &options->refcheck, "Compare some rows with the float64 reference"},
      {"--format", &options->format, "text, markdown (md), csv or json"},
      {"--svg", &options->svg, "Also draw the rows into this file"},
  };
  add_runtime_options(usage, options->runtime);
#ifdef QUIRE_HAS_ENGINE
  auto engine = std::make_shared<EngineBench>();
  add_engine_bench_options(usage, *engine);
#endif
  usage.footer =
      "Times are medians over runs on cold keys and values: copies of the batch that together exceed twice the last\n"
      "cache take turns; on a GPU, replays of a CUDA graph with the L2 cache flushed before each. TFLOP/s count the\n"
      "products of visible pairs alone. The exit status is 1 if a row could not be\n"
      "measured or --refcheck found it wrong.";
#ifdef QUIRE_HAS_ENGINE
  return [options, engine] {
    const Result<int> status = engine->engine ? run_engine(*engine, *options) : run_bench(*options);
    return status.ok() ? *status : report(status.status());
  };
#else
  return [options] {
    const Result<int> status = run_bench(*options);
    return status.ok() ? *status : report(status.status());
  };
#endif
}

}  // namespace quire::cli
