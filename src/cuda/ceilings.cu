// Measures what the device can do at best: read, copy, multiply. Kernels of nothing else.
#include <algorithm>

#include "cuda/context.h"
#include "cuda/timing.h"
#include "quire/cuda.h"

namespace quire::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kMatmulSteps = 4096;
constexpr int kFmaSteps = 1 << 16;
constexpr std::int64_t kLargest = std::int64_t{4} << 30;

__global__ void empty_kernel() {}

// Random bits whose bfloat16 halves are moderate numbers: products of zeros would run faster than real ones.
__global__ void fill_kernel(std::uint32_t* to, std::int64_t count) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    std::uint64_t x = static_cast<std::uint64_t>(i) * 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    to[i] = (static_cast<std::uint32_t>(x >> 24) & 0x80ff80ffu) | 0x3f003f00u;
  }
}

// Cost: `count` words read, eight under way a thread. Bound by memory.
__global__ void __launch_bounds__(kThreads) read_kernel(const uint4* from, std::int64_t count, std::uint32_t* sink) {
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
  for (; i < count; i += stride) sum += from[i].x ^ from[i].y ^ from[i].z ^ from[i].w;
  if (sum == 0x12345678u && sink != nullptr) *sink = sum;
}

// Cost: `count` words read and written, four under way a thread. Bound by memory.
__global__ void __launch_bounds__(kThreads) copy_kernel(const uint4* from, uint4* to, std::int64_t count) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; i + 3 * stride < count; i += 4 * stride) {
    uint4 v[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) v[j] = __ldcs(from + i + j * stride);
#pragma unroll
    for (int j = 0; j < 4; ++j) __stcs(to + i + j * stride, v[j]);
  }
  for (; i < count; i += stride) to[i] = from[i];
}

// Cost: kMatmulSteps products of 64 x 256 x 16 a warpgroup on Hopper, out of shared memory; elsewhere as many
// operations by mma.sync out of registers. Bound by the tensor cores.
__global__ void __launch_bounds__(128) matmul_kernel(const uint4* random, float* sink) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr int kN = 256;
  __shared__ alignas(1024) uint4 tiles[(64 + kN) * 16 * 2 / 16];
  for (int i = static_cast<int>(threadIdx.x); i < (64 + kN) * 2; i += 128) tiles[i] = random[i];
  __syncthreads();
  asm volatile("fence.proxy.async;" ::: "memory");
  // Tiles without swizzle: core matrices of 8 rows of 16 bytes, 128 bytes apart along k and 256 along m or n.
  const auto describe = [](std::uint32_t address) {
    return static_cast<std::uint64_t>((address & 0x3ffff) >> 4) | (std::uint64_t{128 >> 4} << 16) |
           (std::uint64_t{256 >> 4} << 32);
  };
  const auto first = static_cast<std::uint32_t>(__cvta_generic_to_shared(tiles));
  const std::uint64_t a = describe(first);
  const std::uint64_t b = describe(first + 64 * 16 * 2);
  float sums[kN / 2] = {};
  for (int step = 0; step < kMatmulSteps; step += 8) {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#define QUIRE_S4(n) "+f"(sums[n]), "+f"(sums[n + 1]), "+f"(sums[n + 2]), "+f"(sums[n + 3])
#define QUIRE_S16(n) QUIRE_S4(n), QUIRE_S4(n + 4), QUIRE_S4(n + 8), QUIRE_S4(n + 12)
      asm volatile(
          "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
          "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,"
          "%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,"
          "%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,"
          "%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,"
          "%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,"
          "%127}, %128, %129, 1, 1, 1, 0, 0;"
          : QUIRE_S16(0), QUIRE_S16(16), QUIRE_S16(32), QUIRE_S16(48), QUIRE_S16(64), QUIRE_S16(80), QUIRE_S16(96),
            QUIRE_S16(112)
          : "l"(a), "l"(b));
#undef QUIRE_S16
#undef QUIRE_S4
    }
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  }
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) sum += sums[i];
  if (sum == 1.2345f) *sink = sum;
#else
  const auto* words = reinterpret_cast<const std::uint32_t*>(random) + threadIdx.x * 6;
  const std::uint32_t a[4] = {words[0], words[1], words[2], words[3]};
  float sums[8][4] = {};
  // A warp's product is 16 x 8 x 16: a 128th of a warpgroup's step, and there are four warps.
  for (int step = 0; step < kMatmulSteps * 4; ++step) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
          "{%0,%1,%2,%3};"
          : "+f"(sums[i][0]), "+f"(sums[i][1]), "+f"(sums[i][2]), "+f"(sums[i][3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(words[4]), "r"(words[5]));
    }
  }
  float sum = 0.0f;
  for (const auto& tile : sums) sum += tile[0] + tile[1] + tile[2] + tile[3];
  if (sum == 1.2345f) *sink = sum;
#endif
}

// Cost: 8 * kFmaSteps multiply-adds a thread. Bound by arithmetic.
__global__ void __launch_bounds__(kThreads) fma_kernel(const float* random, float* sink) {
  float sums[8];
  const float factor = random[threadIdx.x];
  for (int i = 0; i < 8; ++i) sums[i] = random[i];
  for (int step = 0; step < kFmaSteps; ++step) {
#pragma unroll
    for (int i = 0; i < 8; ++i) sums[i] = __fmaf_rn(sums[i], factor, factor);
  }
  float sum = 0.0f;
  for (const float part : sums) sum += part;
  if (sum == 1.2345f) *sink = sum;
}

Status launched(const char* what) { return to_status(cudaGetLastError(), what); }

Result<double> median_seconds(void* stream, const std::function<Status()>& work, const TimingPolicy& policy) {
  QUIRE_ASSIGN_OR_RETURN(std::vector<double> seconds, time_graph(stream, work, policy));
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

unsigned blocks(const Context& device, int per_multiprocessor) {
  return static_cast<unsigned>(device.multiprocessors * per_multiprocessor);
}

// The best grid's seconds; `launch` takes the blocks of a multiprocessor.
Result<double> best_grid(void* stream, const std::function<Status(int)>& launch) {
  double best = 1e30;
  for (const int grid : {4, 8, 16, 64}) {
    QUIRE_ASSIGN_OR_RETURN(const double seconds,
                           median_seconds(stream, [&] { return launch(grid); },
                                          {.min_seconds = 0.0, .min_repeats = 7, .rest_seconds = 0.0}));
    best = std::min(best, seconds);
  }
  return best;
}

Status measure_products(void* stream, const Context& device, const DeviceBuffer& random, DeviceCeilings& out) {
  auto* const native = static_cast<cudaStream_t>(stream);
  auto* const sink = static_cast<float*>(random.data());
  const auto multiply = [&] {
    matmul_kernel<<<blocks(device, 2), 128, 0, native>>>(static_cast<const uint4*>(random.data()) + 64, sink);
    return launched("matmul_kernel");
  };
  QUIRE_ASSIGN_OR_RETURN(const double products,
                         median_seconds(stream, multiply, {.min_seconds = 0.0, .min_repeats = 9, .rest_seconds = 0.0}));
  out.half_flops = 2.0 * 64 * 256 * 16 * kMatmulSteps * blocks(device, 2) / products;
  const auto add = [&] {
    fma_kernel<<<blocks(device, 4), kThreads, 0, native>>>(static_cast<const float*>(random.data()) + 256, sink);
    return launched("fma_kernel");
  };
  QUIRE_ASSIGN_OR_RETURN(const double sums,
                         median_seconds(stream, add, {.min_seconds = 0.0, .min_repeats = 5, .rest_seconds = 0.0}));
  out.float32_flops = 2.0 * 8 * kFmaSteps * kThreads * blocks(device, 4) / sums;
  return {};
}

}  // namespace

Status read_through(const void* data, std::size_t bytes, void* stream) {
  QUIRE_ASSIGN_OR_RETURN(const Context* device, context());
  read_kernel<<<blocks(*device, 8), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      static_cast<const uint4*>(data), static_cast<std::int64_t>(bytes / 16), nullptr);
  return launched("read_kernel");
}

Result<double> time_copy(void* stream, std::int64_t bytes, const TimingPolicy& policy) {
  QUIRE_ASSIGN_OR_RETURN(const Context* device, context());
  const auto half = static_cast<std::size_t>(std::max<std::int64_t>(bytes / 2, 16));
  QUIRE_ASSIGN_OR_RETURN(const DeviceBuffer from, DeviceBuffer::allocate(half));
  QUIRE_ASSIGN_OR_RETURN(const DeviceBuffer to, DeviceBuffer::allocate(half));
  QUIRE_RETURN_IF_ERROR(fill(from.data(), 1, half, stream));
  const auto words = static_cast<std::int64_t>(half / 16);
  double best = 1e30;
  for (const std::int64_t per_thread : {1, 2, 4, 8}) {
    const std::int64_t wanted = (words + kThreads * per_thread - 1) / (kThreads * per_thread);
    const auto grid = static_cast<unsigned>(std::min<std::int64_t>(wanted, blocks(*device, 64)));
    const auto copy = [&] {
      copy_kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(static_cast<const uint4*>(from.data()),
                                                                            static_cast<uint4*>(to.data()), words);
      return launched("copy_kernel");
    };
    QUIRE_ASSIGN_OR_RETURN(const double seconds, median_seconds(stream, copy, policy));
    best = std::min(best, seconds);
  }
  return best;
}

Result<DeviceCeilings> measure_ceilings(void* stream) {
  QUIRE_ASSIGN_OR_RETURN(const Context* device, context());
  QUIRE_ASSIGN_OR_RETURN(const DeviceInfo info, device_info());
  const std::int64_t bytes = std::min(kLargest, info.memory_bytes / 6) / 4096 * 4096;
  QUIRE_ASSIGN_OR_RETURN(const DeviceBuffer from, DeviceBuffer::allocate(static_cast<std::size_t>(bytes)));
  QUIRE_ASSIGN_OR_RETURN(const DeviceBuffer to, DeviceBuffer::allocate(static_cast<std::size_t>(bytes)));
  auto* const native = static_cast<cudaStream_t>(stream);
  fill_kernel<<<blocks(*device, 16), kThreads, 0, native>>>(static_cast<std::uint32_t*>(from.data()), bytes / 4);
  QUIRE_RETURN_IF_ERROR(launched("fill_kernel"));
  const auto* source = static_cast<const uint4*>(from.data());
  DeviceCeilings out;
  QUIRE_ASSIGN_OR_RETURN(const double reading, best_grid(stream, [&](int grid) {
                           read_kernel<<<blocks(*device, grid), kThreads, 0, native>>>(
                               source, bytes / 16, static_cast<std::uint32_t*>(to.data()));
                           return launched("read_kernel");
                         }));
  out.read_bytes = static_cast<double>(bytes) / reading;
  QUIRE_ASSIGN_OR_RETURN(const double copying, best_grid(stream, [&](int grid) {
                           copy_kernel<<<blocks(*device, grid), kThreads, 0, native>>>(
                               source, static_cast<uint4*>(to.data()), bytes / 16);
                           return launched("copy_kernel");
                         }));
  out.copy_bytes = 2.0 * static_cast<double>(bytes) / copying;
  QUIRE_RETURN_IF_ERROR(measure_products(stream, *device, from, out));
  const auto nothing = [&] {
    empty_kernel<<<1, 32, 0, native>>>();
    return launched("empty_kernel");
  };
  QUIRE_ASSIGN_OR_RETURN(out.launch_seconds, median_seconds(stream, nothing, {.min_seconds = 0.0, .min_repeats = 31}));
  return out;
}

}  // namespace quire::cuda
