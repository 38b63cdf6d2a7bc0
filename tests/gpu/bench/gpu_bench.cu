// Times the CUDA kernels: CUDA-graph replays with the L2 cache flushed before each, medians, beside ceilings that are
// measured in the same run. gpu_bench [FILTER]: only rows whose name contains FILTER.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "cuda/attention.h"
#include "quire/kv_cache.h"

using namespace quire;

namespace {

void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}
#define CHECK(call) check_cuda((call), #call)

void check(const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.to_string().c_str());
  std::exit(1);
}

__device__ std::uint32_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return static_cast<std::uint32_t>(x >> 16);
}

// Random bfloat16 in (-2, 2), or random bytes whose exponent is moderate in every 8-bit format.
__global__ void fill_bf16(std::uint16_t* to, std::int64_t count, std::uint64_t seed) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    const std::uint32_t r = mix(seed + static_cast<std::uint64_t>(i));
    const float value = (static_cast<float>(r & 0xffff) / 32768.0f - 1.0f) * 2.0f;
    to[i] = static_cast<std::uint16_t>(__float_as_uint(value) >> 16);
  }
}
__global__ void fill_bytes(std::uint8_t* to, std::int64_t count, std::uint64_t seed) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    to[i] = static_cast<std::uint8_t>(mix(seed + static_cast<std::uint64_t>(i)) & 0xbf);
  }
}
__global__ void fill_floats(float* to, std::int64_t count, float value) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride)
    to[i] = value;
}
__global__ void __launch_bounds__(512) read_all(const uint4* from, std::int64_t count, std::uint32_t* sink) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  std::uint32_t sum = 0;
  std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; i + 7 * stride < count; i += 8 * stride) {
    uint4 v[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = __ldcs(from + i + j * stride);
#pragma unroll
    for (int j = 0; j < 8; ++j) sum += v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  if (sum == 0x12345678u) *sink = sum;
}

__global__ void __launch_bounds__(512) copy_all(const uint4* from, uint4* to, std::int64_t count) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; i + 3 * stride < count; i += 4 * stride) {
    uint4 v[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) v[j] = __ldcs(from + i + j * stride);
#pragma unroll
    for (int j = 0; j < 4; ++j) __stcs(to + i + j * stride, v[j]);
  }
}
__global__ void nothing() {}

template <class T>
T* device_array(std::size_t count) {
  void* data = nullptr;
  CHECK(cudaMalloc(&data, std::max<std::size_t>(count, 1) * sizeof(T)));
  return static_cast<T*>(data);
}
template <class T>
T* upload(const std::vector<T>& values) {
  T* data = device_array<T>(values.size());
  CHECK(cudaMemcpy(data, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  return data;
}

cudaStream_t stream;
void* flush_memory;
constexpr std::size_t kFlushBytes = std::size_t{256} << 20;

// Median microseconds of a graph of `work`.
double time_graph(const std::function<void()>& work, int repeats) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  work();
  CHECK(cudaStreamSynchronize(stream));
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  work();
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t begin, end;
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  std::vector<double> times;
  for (int i = 0; i < repeats + 3; ++i) {
    CHECK(cudaMemsetAsync(flush_memory, i, kFlushBytes, stream));
    CHECK(cudaEventRecord(begin, stream));
    CHECK(cudaGraphLaunch(exec, stream));
    CHECK(cudaEventRecord(end, stream));
    CHECK(cudaEventSynchronize(end));
    float ms = 0.0f;
    CHECK(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 3) times.push_back(1000.0 * static_cast<double>(ms));
  }
  CHECK(cudaGraphExecDestroy(exec));
  CHECK(cudaGraphDestroy(graph));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

struct Work {
  std::string name;
  KVCacheFormat format = KVCacheFormat::kBlockFirst;
  KVCacheDType cache = KVCacheDType::kAuto;
  ScalePlacement scales = ScalePlacement::kInline;
  std::vector<std::int32_t> seq_lens;
  std::int32_t query_len = 1;
  std::int32_t q_heads = 32;
  std::int32_t kv_heads = 8;
  std::int32_t head_size = 128;
  std::int32_t head_size_v = 128;
  std::int32_t block_size = 16;
  std::int32_t window = 0;
  bool sinks = false;
  bool tree = false;
  bool is_prefill = false;
  KVSplits splits = KVSplits::kBalanced;
  double target_us = 0.0;
  double target_fraction = 0.0;
};

double read_bandwidth, copy_bandwidth;

void run(const Work& work) {
  std::vector<void*> owned;
  const auto keep = [&](auto* p) {
    owned.push_back(p);
    return p;
  };
  const auto seqs = static_cast<std::int32_t>(work.seq_lens.size());
  std::int64_t blocks = 1, width = 1;
  for (const std::int32_t len : work.seq_lens) {
    const std::int64_t n = (len + work.block_size - 1) / work.block_size;
    blocks += n;
    width = std::max(width, n);
  }
  const KVCacheSpec spec{.format = work.format,
                         .cache_dtype = work.cache,
                         .model_dtype = DType::kBFloat16,
                         .scales = work.scales,
                         .num_blocks = blocks,
                         .block_size = work.block_size,
                         .num_kv_heads = work.kv_heads,
                         .head_size = work.head_size,
                         .head_size_v = work.head_size_v};
  const Result<std::int64_t> bytes = kv_cache_bytes(spec);
  check(bytes.status());
  void* cache = keep(device_array<std::uint8_t>(static_cast<std::size_t>(*bytes)));
  if (is_quantized(work.cache)) {
    fill_bytes<<<2048, 256, 0, stream>>>(static_cast<std::uint8_t*>(cache), *bytes, 7);
  } else {
    fill_bf16<<<2048, 256, 0, stream>>>(static_cast<std::uint16_t*>(cache), *bytes / 2, 7);
  }
  const Device device{DeviceType::kCuda, 0};
  const Result<TensorView> view = view_kv_cache(spec, cache, device);
  check(view.status());
  KVScales scales{.k_scale = 0.01f, .v_scale = 0.01f};
  if (is_per_token_head(work.cache) && work.scales == ScalePlacement::kSeparate) {
    const std::int64_t n = blocks * work.block_size * work.kv_heads;
    float* values = keep(device_array<float>(static_cast<std::size_t>(n)));
    fill_floats<<<1024, 256, 0, stream>>>(values, n, 0.01f);
    const auto tensor = make_tensor(values, DType::kFloat32, {blocks, work.block_size, work.kv_heads}, device);
    check(tensor.status());
    scales.k_scale_cache = scales.v_scale_cache = *tensor;
  }
  const Result<KVSource> source = bind_kv_cache(spec, *view, scales);
  check(source.status());
  std::vector<std::int32_t> ids(static_cast<std::size_t>(blocks - 1)), table(static_cast<std::size_t>(width * seqs));
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int32_t>(i + 1);
  std::shuffle(ids.begin(), ids.end(), std::mt19937(1));
  std::size_t next = 0;
  std::vector<std::int32_t> starts{0};
  double keys = 0.0, pairs = 0.0;
  for (std::int32_t s = 0; s < seqs; ++s) {
    const std::int32_t len = work.seq_lens[static_cast<std::size_t>(s)];
    for (std::int64_t i = 0; i < (len + work.block_size - 1) / work.block_size; ++i)
      table[static_cast<std::size_t>(s * width + i)] = ids[next++];
    const std::int32_t query_len = work.is_prefill ? len : work.query_len;
    starts.push_back(starts.back() + query_len);
    keys += work.window > 0 ? std::min(len, work.window) : len;
    pairs += work.is_prefill ? 0.5 * len * len : static_cast<double>(query_len) * len;
  }
  AttentionArgs args;
  const std::int32_t tokens = starts.back();
  const bool differential = work.format == KVCacheFormat::kDifferential;
  auto* query = keep(device_array<std::uint16_t>(static_cast<std::size_t>(tokens) * work.q_heads * work.head_size));
  fill_bf16<<<512, 256, 0, stream>>>(query, static_cast<std::int64_t>(tokens) * work.q_heads * work.head_size, 99);
  args.query = query;
  args.query_dtype = args.output_dtype = DType::kBFloat16;
  args.query_head_stride = work.head_size;
  args.query_token_stride = static_cast<std::int64_t>(work.q_heads) * work.head_size;
  args.output = keep(device_array<std::uint16_t>(static_cast<std::size_t>(tokens) * work.q_heads * work.head_size_v));
  args.output_head_stride = work.head_size_v;
  args.output_token_stride = static_cast<std::int64_t>(work.q_heads) * work.head_size_v;
  args.num_seqs = seqs;
  args.num_tokens = tokens;
  args.num_q_heads = work.q_heads;
  args.query_start_loc = keep(upload(starts));
  args.seq_lens = keep(upload(work.seq_lens));
  args.kv = *source;
  args.kv.block_table = keep(upload(table));
  args.kv.block_table_stride = width;
  args.variant.scale = 0.0883883f;
  if (work.window > 0) args.variant.window_left = work.window - 1;
  if (work.sinks) args.variant.sinks = keep(upload(std::vector<float>(static_cast<std::size_t>(work.q_heads), 0.5f)));
  if (differential) {
    args.differential = {
        .lambda = 0.3f,
        .post_scale = 0.5f,
        .eps = 1e-5f,
        .subln_weight = keep(upload(std::vector<float>(static_cast<std::size_t>(2 * work.head_size_v), 1.0f)))};
  }
  if (work.tree) {
    const std::int32_t n = work.query_len;
    std::vector<std::int32_t> sizes(static_cast<std::size_t>(seqs), n);
    std::vector<std::int64_t> offsets(static_cast<std::size_t>(seqs), 0);
    std::vector<std::uint64_t> mask(static_cast<std::size_t>(n), 0);
    for (std::int32_t r = 0; r < n; ++r) {
      for (std::int32_t node = r;; node = (node - 1) / 2) {
        mask[static_cast<std::size_t>(r)] |= std::uint64_t{1} << node;
        if (node == 0) break;
      }
    }
    args.variant.tree = {keep(upload(sizes)), keep(upload(offsets)), keep(upload(mask)), nullptr, nullptr};
  }
  PlanConfig config;
  config.rows_per_token = work.q_heads / work.kv_heads;
  Variant plan_variant = args.variant;
  plan_variant.tree = {};
  plan_variant.sinks = nullptr;
  const AttentionPlan plan = make_attention_plan(config, starts, work.seq_lens, plan_variant);
  const Runtime runtime{.backplane = Backplane::kCuda, .stream = stream, .splits = work.splits};
  const std::size_t need = cuda::attention_workspace_bytes(args, plan, runtime);
  auto* workspace = keep(device_array<std::byte>(need));
  const double us = time_graph(
      [&] {
        check(cuda::attention(args, plan, runtime, {workspace, need}));
      },
      work.is_prefill ? 7 : 31);
  const double streams = differential ? 2.0 : 1.0;
  const double element = is_quantized(work.cache) ? 1.0 : 2.0;
  const double scale_bytes = is_per_token_head(work.cache) ? 8.0 : 0.0;
  const double kv_bytes = keys * work.kv_heads * ((work.head_size + work.head_size_v) * element + scale_bytes);
  const double io = kv_bytes + 2.0 * tokens * work.q_heads * (work.head_size + work.head_size_v);
  const double flops = pairs * work.q_heads * 2.0 * (work.head_size + streams * work.head_size_v);
  const double fraction = io / us * 1e-6 / read_bandwidth;
  std::printf("| %-34s | %9.1f | %7.3f | %5.1f%% | %7.1f |", work.name.c_str(), us, io / us * 1e-6, 100.0 * fraction,
              flops / us * 1e-6);
  if (work.target_us > 0.0)
    std::printf(" <= %.0f us: %s |\n", work.target_us, us <= work.target_us ? "met" : "missed");
  else if (work.target_fraction > 0.0)
    std::printf(" >= %.0f%%: %s |\n", 100.0 * work.target_fraction,
                fraction >= work.target_fraction ? "met" : "missed");
  else
    std::printf(" |\n");
  std::fflush(stdout);
  for (void* p : owned) CHECK(cudaFree(p));
}

void measure_ceilings() {
  const std::size_t bytes = std::size_t{4} << 30;
  auto* a = device_array<std::byte>(bytes);
  auto* b = device_array<std::byte>(bytes);
  fill_bf16<<<2048, 256, 0, stream>>>(reinterpret_cast<std::uint16_t*>(a), static_cast<std::int64_t>(bytes / 2), 3);
  auto* sink = device_array<std::uint32_t>(1);
  double best = 1e30;
  for (const int blocks : {132 * 2, 132 * 4, 132 * 8, 132 * 16}) {
    best = std::min(best, time_graph(
                              [&] {
                                read_all<<<static_cast<unsigned>(blocks), 512, 0, stream>>>(
                                    reinterpret_cast<const uint4*>(a), static_cast<std::int64_t>(bytes / 16), sink);
                              },
                              9));
  }
  read_bandwidth = static_cast<double>(bytes) / best * 1e-6;
  double copy = 1e30;
  for (const int blocks : {132 * 4, 132 * 16, 132 * 64}) {
    copy = std::min(copy, time_graph(
                              [&] {
                                copy_all<<<static_cast<unsigned>(blocks), 512, 0, stream>>>(
                                    reinterpret_cast<const uint4*>(a), reinterpret_cast<uint4*>(b),
                                    static_cast<std::int64_t>(bytes / 16));
                              },
                              9));
  }
  copy_bandwidth = 2.0 * static_cast<double>(bytes) / copy * 1e-6;
  std::printf("ceilings: read-only %.3f TB/s, copy %.3f TB/s (read + write), an empty kernel %.1f us\n", read_bandwidth,
              copy_bandwidth, time_graph([&] { nothing<<<1, 32, 0, stream>>>(); }, 31));
  CHECK(cudaFree(a));
  CHECK(cudaFree(b));
  CHECK(cudaFree(sink));
}

std::vector<std::int32_t> uniform(std::int32_t count, std::int32_t len) {
  return std::vector<std::int32_t>(static_cast<std::size_t>(count), len);
}

// Lengths spread like a serving trace: log-normal around 2k, the sum rounded to a uniform batch's.
std::vector<std::int32_t> ragged(std::int32_t count, std::int64_t total) {
  std::mt19937 generator(5);
  std::lognormal_distribution<double> draw(0.0, 1.0);
  std::vector<double> weights;
  double sum = 0.0;
  for (std::int32_t i = 0; i < count; ++i) sum += weights.emplace_back(draw(generator));
  std::vector<std::int32_t> lens;
  for (const double w : weights)
    lens.push_back(std::max(16, static_cast<std::int32_t>(w / sum * static_cast<double>(total))));
  return lens;
}

std::vector<Work> all_work() {
  std::vector<Work> w;
  const auto decode = [&](const char* name, std::int32_t n, std::int32_t len, double us, double fraction) {
    w.push_back({.name = name, .seq_lens = uniform(n, len), .target_us = us, .target_fraction = fraction});
  };
  decode("decode 1x1k", 1, 1024, 7, 0);
  decode("decode 1x8k", 1, 8192, 15, 0);
  decode("decode 1x32k", 1, 32768, 40, 0);
  decode("decode 1x128k", 1, 131072, 0, 0.90);
  decode("decode 16x8k", 16, 8192, 0, 0.90);
  decode("decode 64x1k", 64, 1024, 0, 0.85);
  decode("decode 64x8k", 64, 8192, 0, 0.95);
  decode("decode 256x4k", 256, 4096, 0, 0.95);
  decode("decode 16x32k", 16, 32768, 0, 0.95);
  w.push_back({.name = "decode 64 ragged, bytes of 64x4k", .seq_lens = ragged(64, 64 * 4096)});
  w.push_back({.name = "decode 64x4k", .seq_lens = uniform(64, 4096)});
  w.push_back({.name = "decode 64x8k batch-invariant", .seq_lens = uniform(64, 8192), .splits = KVSplits::kFixed});
  w.push_back({.name = "decode fp8 64x8k",
               .cache = KVCacheDType::kFp8E4M3,
               .seq_lens = uniform(64, 8192),
               .target_fraction = 0.85});
  w.push_back({.name = "decode fp8 per token-head 64x8k",
               .cache = KVCacheDType::kFp8PerTokenHead,
               .seq_lens = uniform(64, 8192),
               .target_fraction = 0.85});
  w.push_back({.name = "decode int8 inline scales 64x8k",
               .cache = KVCacheDType::kInt8PerTokenHead,
               .seq_lens = uniform(64, 8192),
               .target_fraction = 0.85});
  w.push_back({.name = "decode int8 separate scales 64x8k",
               .cache = KVCacheDType::kInt8PerTokenHead,
               .scales = ScalePlacement::kSeparate,
               .seq_lens = uniform(64, 8192),
               .target_fraction = 0.85});
  for (const auto& [n, len, us] : {std::tuple{1, 8192, 28.0}, {8, 8192, 125.0}, {32, 4096, 260.0}}) {
    w.push_back({.name = "tree 64 nodes " + std::to_string(n) + "x" + std::to_string(len / 1024) + "k",
                 .seq_lens = uniform(n, len),
                 .query_len = 64,
                 .tree = true,
                 .target_us = us});
  }
  w.push_back({.name = "tree 8 nodes 1x8k", .seq_lens = uniform(1, 8192), .query_len = 8, .tree = true});
  w.push_back({.name = "tree 8 nodes 16x8k", .seq_lens = uniform(16, 8192), .query_len = 8, .tree = true});
  w.push_back({.name = "tree 8, int8, window 4k, sinks 16x8k",
               .cache = KVCacheDType::kInt8PerTokenHead,
               .scales = ScalePlacement::kSeparate,
               .seq_lens = uniform(16, 8192),
               .query_len = 8,
               .window = 4096,
               .sinks = true,
               .tree = true});
  w.push_back({.name = "chain 8, int8 16x4k",
               .cache = KVCacheDType::kInt8PerTokenHead,
               .scales = ScalePlacement::kSeparate,
               .seq_lens = uniform(16, 4096),
               .query_len = 8});
  w.push_back({.name = "DIFFKV 192/128 decode 16x8k",
               .format = KVCacheFormat::kPackedKV,
               .seq_lens = uniform(16, 8192),
               .head_size = 192,
               .target_fraction = 0.90});
  w.push_back({.name = "differential decode 16x8k",
               .format = KVCacheFormat::kDifferential,
               .seq_lens = uniform(16, 8192),
               .q_heads = 32,
               .kv_heads = 32,
               .head_size = 64,
               .head_size_v = 64,
               .target_fraction = 0.90});
  w.push_back({.name = "decode d64 64x8k", .seq_lens = uniform(64, 8192), .head_size = 64, .head_size_v = 64});
  w.push_back({.name = "decode d256 64x4k", .seq_lens = uniform(64, 4096), .head_size = 256, .head_size_v = 256});
  w.push_back({.name = "prefill causal d128 1x2k", .seq_lens = uniform(1, 2048), .is_prefill = true});
  w.push_back({.name = "prefill causal d128 1x8k", .seq_lens = uniform(1, 8192), .is_prefill = true});
  w.push_back({.name = "prefill causal d64 1x8k",
               .seq_lens = uniform(1, 8192),
               .head_size = 64,
               .head_size_v = 64,
               .is_prefill = true});
  w.push_back({.name = "prefill causal d256 1x8k",
               .seq_lens = uniform(1, 8192),
               .head_size = 256,
               .head_size_v = 256,
               .is_prefill = true});
  w.push_back({.name = "prefill differential 1x8k",
               .format = KVCacheFormat::kDifferential,
               .seq_lens = uniform(1, 8192),
               .q_heads = 32,
               .kv_heads = 32,
               .head_size = 64,
               .head_size_v = 64,
               .is_prefill = true});
  return w;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string filter = argc > 1 ? argv[1] : "";
  CHECK(cudaStreamCreate(&stream));
  CHECK(cudaMalloc(&flush_memory, kFlushBytes));
  cudaDeviceProp properties;
  CHECK(cudaGetDeviceProperties(&properties, 0));
  std::printf("%s, %d multiprocessors\n", properties.name, properties.multiProcessorCount);
  measure_ceilings();
  std::printf("| %-34s | %9s | %7s | %6s | %7s | target |\n|---|---|---|---|---|---|\n", "work", "us", "TB/s", "read",
              "TFLOP/s");
  for (const Work& work : all_work()) {
    if (work.name.find(filter) != std::string::npos) run(work);
  }
  return 0;
}
