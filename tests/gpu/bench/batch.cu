// Fills a row's batch.
#include "gpu/bench/batch.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <random>

#include "cuda/attention.h"
#include "cuda/context.h"

namespace quire::bench {
namespace {

constexpr Device kDevice{DeviceType::kCuda, 0};

__device__ std::uint32_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return static_cast<std::uint32_t>(x >> 16);
}

// Random bfloat16 in (-2, 2), random bytes whose exponent is moderate in every 8-bit format, or a scale.
enum class Fill : std::uint8_t { kBFloat16, kBytes, kScale };

__global__ void fill_kernel(void* to, std::int64_t count, Fill fill) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    const std::uint32_t r = mix(static_cast<std::uint64_t>(i) + 7);
    if (fill == Fill::kBFloat16) {
      const float value = (static_cast<float>(r & 0xffff) / 32768.0f - 1.0f) * 2.0f;
      static_cast<std::uint16_t*>(to)[i] = static_cast<std::uint16_t>(__float_as_uint(value) >> 16);
    } else if (fill == Fill::kBytes) {
      static_cast<std::uint8_t*>(to)[i] = static_cast<std::uint8_t>(r & 0xbf);
    } else {
      static_cast<float*>(to)[i] = 0.01f;
    }
  }
}

Status fill(void* to, std::int64_t count, Fill how, void* stream) {
  fill_kernel<<<2048, 256, 0, static_cast<cudaStream_t>(stream)>>>(to, count, how);
  return cuda::to_status(cudaGetLastError(), "fill_kernel");
}

std::int64_t blocks_of(const Work& work, std::int32_t len) {
  return (static_cast<std::int64_t>(len) + work.block_size - 1) / work.block_size;
}

std::int32_t query_len_of(const Work& work, std::int32_t seq_len) { return work.is_prefill ? seq_len : work.query_len; }

}  // namespace

Result<void*> Batch::keep(std::size_t bytes) {
  QUIRE_ASSIGN_OR_RETURN(cuda::DeviceBuffer buffer, cuda::DeviceBuffer::allocate(std::max<std::size_t>(bytes, 16)));
  owned_.push_back(std::move(buffer));
  return owned_.back().data();
}

template <class T>
Result<T*> Batch::upload(const std::vector<T>& values) {
  QUIRE_ASSIGN_OR_RETURN(void* const data, keep(values.size() * sizeof(T)));
  QUIRE_RETURN_IF_ERROR(cuda::copy_to_device(data, values.data(), values.size() * sizeof(T), runtime_.stream));
  return static_cast<T*>(data);
}

Status Batch::make_cache(const Work& work) {
  const KVCacheSpec spec{.format = work.format,
                         .cache_dtype = work.cache,
                         .model_dtype = DType::kBFloat16,
                         .scales = work.scales,
                         .num_blocks = num_blocks_,
                         .block_size = work.block_size,
                         .num_kv_heads = work.kv_heads,
                         .head_size = work.head_size,
                         .head_size_v = work.head_size_v};
  QUIRE_ASSIGN_OR_RETURN(const std::int64_t bytes, kv_cache_bytes(spec));
  QUIRE_ASSIGN_OR_RETURN(void* const data, keep(static_cast<std::size_t>(bytes)));
  const bool narrow = is_quantized(work.cache);
  QUIRE_RETURN_IF_ERROR(
      fill(data, narrow ? bytes : bytes / 2, narrow ? Fill::kBytes : Fill::kBFloat16, runtime_.stream));
  QUIRE_ASSIGN_OR_RETURN(const TensorView view, view_kv_cache(spec, data, kDevice));
  KVScales scales{.k_scale = 0.01f, .v_scale = 0.01f};
  if (is_per_token_head(work.cache) && work.scales == ScalePlacement::kSeparate) {
    const std::int64_t count = num_blocks_ * work.block_size * work.kv_heads;
    QUIRE_ASSIGN_OR_RETURN(void* const values, keep(static_cast<std::size_t>(count) * 4));
    QUIRE_RETURN_IF_ERROR(fill(values, count, Fill::kScale, runtime_.stream));
    QUIRE_ASSIGN_OR_RETURN(scales.k_scale_cache, make_tensor(values, DType::kFloat32,
                                                             {num_blocks_, work.block_size, work.kv_heads}, kDevice));
    scales.v_scale_cache = scales.k_scale_cache;
  }
  QUIRE_ASSIGN_OR_RETURN(args_.kv, bind_kv_cache(spec, view, scales));
  return {};
}

// Block 0 belongs to nobody.
Status Batch::make_metadata(const Work& work) {
  const std::size_t seqs = work.seq_lens.size();
  std::vector<std::int32_t> ids;
  for (std::int64_t id = 1; id < num_blocks_; ++id) ids.push_back(static_cast<std::int32_t>(id));
  std::shuffle(ids.begin(), ids.end(), std::mt19937(1));
  std::vector<std::int32_t> table(static_cast<std::size_t>(width_) * seqs);
  auto next = ids.begin();
  for (std::size_t seq = 0; seq < seqs; ++seq) {
    const std::int64_t count = blocks_of(work, work.seq_lens[seq]);
    std::copy_n(next, count, table.begin() + static_cast<std::ptrdiff_t>(seq) * width_);
    next += count;
  }
  args_.num_seqs = static_cast<std::int32_t>(seqs);
  args_.num_tokens = starts_.back();
  QUIRE_ASSIGN_OR_RETURN(args_.query_start_loc, upload(starts_));
  QUIRE_ASSIGN_OR_RETURN(args_.seq_lens, upload(work.seq_lens));
  QUIRE_ASSIGN_OR_RETURN(args_.kv.block_table, upload(table));
  args_.kv.block_table_stride = width_;
  return {};
}

Status Batch::make_rows(const Work& work) {
  const std::int64_t heads = static_cast<std::int64_t>(starts_.back()) * work.q_heads;
  QUIRE_ASSIGN_OR_RETURN(void* const query, keep(static_cast<std::size_t>(heads * work.head_size) * 2));
  QUIRE_RETURN_IF_ERROR(fill(query, heads * work.head_size, Fill::kBFloat16, runtime_.stream));
  args_.query = query;
  args_.query_dtype = args_.output_dtype = DType::kBFloat16;
  args_.query_head_stride = work.head_size;
  args_.query_token_stride = static_cast<std::int64_t>(work.q_heads) * work.head_size;
  QUIRE_ASSIGN_OR_RETURN(args_.output, keep(static_cast<std::size_t>(heads * work.head_size_v) * 2));
  args_.output_head_stride = work.head_size_v;
  args_.output_token_stride = static_cast<std::int64_t>(work.q_heads) * work.head_size_v;
  args_.num_q_heads = work.q_heads;
  return {};
}

// Window, sinks, the tail of differential attention, and a binary tree in every request.
Status Batch::make_terms(const Work& work) {
  args_.variant.scale = 0.0883883f;
  if (work.window > 0) args_.variant.window_left = work.window - 1;
  if (work.sinks) {
    QUIRE_ASSIGN_OR_RETURN(args_.variant.sinks,
                           upload(std::vector<float>(static_cast<std::size_t>(work.q_heads), 0.5f)));
  }
  if (work.format == KVCacheFormat::kDifferential) {
    args_.differential = {.lambda = 0.3f, .post_scale = 0.5f, .eps = 1e-5f};
    QUIRE_ASSIGN_OR_RETURN(args_.differential.subln_weight,
                           upload(std::vector<float>(static_cast<std::size_t>(2 * work.head_size_v), 1.0f)));
  }
  if (!work.tree) return {};
  const auto nodes = static_cast<std::size_t>(work.query_len);
  std::vector<std::uint64_t> mask(nodes, 0);
  for (std::size_t row = 0; row < nodes; ++row) {
    for (std::size_t node = row;; node = (node - 1) / 2) {
      mask[row] |= std::uint64_t{1} << node;
      if (node == 0) break;
    }
  }
  const std::size_t seqs = work.seq_lens.size();
  QUIRE_ASSIGN_OR_RETURN(args_.variant.tree.size, upload(std::vector<std::int32_t>(seqs, work.query_len)));
  QUIRE_ASSIGN_OR_RETURN(args_.variant.tree.mask_offset, upload(std::vector<std::int64_t>(seqs, 0)));
  QUIRE_ASSIGN_OR_RETURN(args_.variant.tree.mask, upload(mask));
  return {};
}

Status Batch::make_plan(const Work& work) {
  Variant bounding = args_.variant;
  bounding.tree = {};
  bounding.sinks = nullptr;
  plan_ = make_attention_plan({.rows_per_token = work.q_heads / work.kv_heads}, starts_, work.seq_lens, bounding);
  const std::size_t bytes = cuda::attention_workspace_bytes(args_, plan_, runtime_);
  QUIRE_ASSIGN_OR_RETURN(void* const data, keep(bytes));
  workspace_ = {static_cast<std::byte*>(data), bytes};
  return {};
}

void Batch::count(const Work& work) {
  double keys = 0.0;
  double pairs = 0.0;
  for (const std::int32_t len : work.seq_lens) {
    keys += work.window > 0 ? std::min(len, work.window) : len;
    pairs += work.is_prefill ? 0.5 * len * len : static_cast<double>(work.query_len) * len;
  }
  const double streams = work.format == KVCacheFormat::kDifferential ? 2.0 : 1.0;
  const double element = is_quantized(work.cache) ? 1.0 : 2.0;
  const double scales = is_per_token_head(work.cache) ? 8.0 : 0.0;
  bytes_ = keys * work.kv_heads * ((work.head_size + work.head_size_v) * element + scales) +
           2.0 * args_.num_tokens * work.q_heads * (work.head_size + work.head_size_v);
  flops_ = pairs * work.q_heads * 2.0 * (work.head_size + streams * work.head_size_v);
}

Result<Batch> Batch::make(const Work& work, void* stream) {
  Batch batch;
  batch.runtime_ = {.backplane = Backplane::kCuda, .stream = stream, .splits = work.splits};
  for (const std::int32_t len : work.seq_lens) {
    batch.num_blocks_ += blocks_of(work, len);
    batch.width_ = std::max(batch.width_, blocks_of(work, len));
    batch.starts_.push_back(batch.starts_.back() + query_len_of(work, len));
  }
  QUIRE_RETURN_IF_ERROR(batch.make_cache(work));
  QUIRE_RETURN_IF_ERROR(batch.make_metadata(work));
  QUIRE_RETURN_IF_ERROR(batch.make_rows(work));
  QUIRE_RETURN_IF_ERROR(batch.make_terms(work));
  QUIRE_RETURN_IF_ERROR(batch.make_plan(work));
  batch.count(work);
  QUIRE_RETURN_IF_ERROR(cuda::synchronize(stream));
  return std::move(batch);
}

Status Batch::run() const { return cuda::attention(args_, plan_, runtime_, workspace_); }

}  // namespace quire::bench
