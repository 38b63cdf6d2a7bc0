// Benchmarks of CPU attention as a share of what the same process measures: prefill against vdpbf16ps or multiply-add
// peak, decode against memory reads. Arguments: query_len, seq_len, head_size, threads.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "core/convert.h"
#include "cpu/attention.h"
#include "cpu/ceilings.h"

namespace quire::cpu {
namespace {

constexpr std::int32_t kQHeads = 32;
constexpr std::int32_t kKvHeads = 8;
constexpr std::int32_t kBlockSize = 16;

const Ceilings& ceilings(int threads) {
  static std::map<int, Ceilings> found;
  if (!found.contains(threads)) {
    auto measured = measure_ceilings(threads);
    found[threads] = measured.ok() ? *measured : Ceilings{};
  }
  return found[threads];
}

// One sequence over a shuffled paged cache, token-major pages.
struct Workload {
  std::int32_t query_len = 1;
  std::int32_t seq_len = 1;
  std::int32_t head_size = 128;
  DType dtype = DType::kBFloat16;  // of queries and outputs
  DType kv_dtype = DType::kBFloat16;
  std::vector<std::byte> query, output, cache;
  std::vector<std::int32_t> starts, lens, table;
  AttentionArgs args;
  AttentionPlan plan;

  Workload(const benchmark::State& state, DType query_dtype, DType cache_dtype)
      : query_len(static_cast<std::int32_t>(state.range(0))),
        seq_len(static_cast<std::int32_t>(state.range(1))),
        head_size(static_cast<std::int32_t>(state.range(2))),
        dtype(query_dtype),
        kv_dtype(cache_dtype) {
    const std::int32_t blocks = (seq_len + kBlockSize - 1) / kBlockSize;
    starts = {0, query_len};
    lens = {seq_len};
    table.resize(static_cast<std::size_t>(blocks));
    std::iota(table.begin(), table.end(), 0);
    std::shuffle(table.begin(), table.end(), std::mt19937(1));
    fill(query, dtype, static_cast<std::int64_t>(query_len) * kQHeads * head_size);
    output.resize(query.size());
    fill(cache, kv_dtype, static_cast<std::int64_t>(blocks) * 2 * kBlockSize * kKvHeads * head_size);
    set_args(blocks);
    plan = make_attention_plan({.rows_per_token = kQHeads / kKvHeads}, starts, lens, args.variant);
  }
  Workload(const Workload&) = delete;
  Workload& operator=(const Workload&) = delete;

  static void fill(std::vector<std::byte>& data, DType type, std::int64_t count) {
    data.resize(static_cast<std::size_t>(count * dtype_bytes(type)));
    for (std::int64_t i = 0; i < count; ++i) {
      store_from_float(data.data(), type, i, static_cast<float>((i * 40503 >> 4 & 0xffff) - 32768) / 32768.0f);
    }
  }

  void set_args(std::int32_t blocks) {
    args.query = query.data();
    args.query_dtype = dtype;
    args.query_token_stride = kQHeads * head_size;
    args.query_head_stride = head_size;
    args.output = output.data();
    args.output_dtype = dtype;
    args.output_token_stride = kQHeads * head_size;
    args.output_head_stride = head_size;
    args.num_seqs = 1;
    args.num_tokens = query_len;
    args.num_q_heads = kQHeads;
    args.query_start_loc = starts.data();
    args.seq_lens = lens.data();
    args.variant.scale = 0.1f;
    KVSource& kv = args.kv;
    kv.dtype = kv_dtype;
    kv.num_kv_heads = kKvHeads;
    kv.head_size = head_size;
    kv.head_size_v = head_size;
    kv.block_table = table.data();
    kv.block_table_stride = blocks;
    kv.num_blocks = blocks;
    kv.block_size = kBlockSize;
    const std::int64_t half = static_cast<std::int64_t>(kBlockSize) * kKvHeads * head_size;
    kv.key[0] = {
        .data = cache.data(), .page_stride = 2 * half, .token_stride = kKvHeads * head_size, .head_stride = head_size};
    kv.value[0] = kv.key[0];
    kv.value[0].data = cache.data() + half * dtype_bytes(kv_dtype);
  }
};

void run_attention(benchmark::State& state, DType dtype, DType kv_dtype) {
  Workload work(state, dtype, kv_dtype);
  const int threads = static_cast<int>(state.range(3));
  const auto isa = default_isa();
  if (!isa.ok()) return state.SkipWithError(isa.status().message().c_str());
  const Runtime runtime{.isa = *isa, .num_threads = threads};
  std::vector<std::byte> workspace(attention_workspace_bytes(work.args, work.plan, runtime));
  for (auto step : state) {
    const Status status = attention(work.args, work.plan, runtime, workspace);
    if (!status.ok()) return state.SkipWithError(status.message().c_str());
  }
  const Ceilings& peak = ceilings(threads);
  const bool is_bf16 = dtype == DType::kBFloat16 && *isa == Isa::kAvx512Bf16;
  const double keys = work.seq_len - (work.query_len - 1) / 2.0;  // that a row sees on average
  const double flops = 4.0 * kQHeads * work.query_len * keys * work.head_size;
  const double bytes = static_cast<double>(work.cache.size());
  using benchmark::Counter;
  state.counters["flops"] = Counter(flops, Counter::kIsIterationInvariantRate);
  state.counters["kv_bytes"] = Counter(bytes, Counter::kIsIterationInvariantRate);
  state.counters["of_peak"] =
      Counter(flops / ((is_bf16 ? peak.bf16_all : peak.fma_all).best * 1e9), Counter::kIsIterationInvariantRate);
  state.counters["of_reads"] = Counter(bytes / (peak.read_all.best * 1e9), Counter::kIsIterationInvariantRate);
}

// The best of many short runs says more than a mean where others use the machine too.
double fastest(const std::vector<double>& times) { return *std::min_element(times.begin(), times.end()); }

void prefill_and_decode(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"q", "s", "d", "threads"})->UseRealTime()->Unit(benchmark::kMillisecond);
  bench->ComputeStatistics("min", fastest);
  for (int threads : {1, 2}) {
    bench->Args({2048, 2048, 128, threads})->Args({2048, 2048, 64, threads})->Args({1, 32768, 128, threads});
  }
}

BENCHMARK_CAPTURE(run_attention, bf16, DType::kBFloat16, DType::kBFloat16)->Apply(prefill_and_decode);
BENCHMARK_CAPTURE(run_attention, bf16_over_e4m3, DType::kBFloat16, DType::kFloat8E4M3)->Apply(prefill_and_decode);
BENCHMARK_CAPTURE(run_attention, f16, DType::kFloat16, DType::kFloat16)->Apply(prefill_and_decode);
BENCHMARK_CAPTURE(run_attention, f32, DType::kFloat32, DType::kFloat32)->Apply(prefill_and_decode);

}  // namespace
}  // namespace quire::cpu
