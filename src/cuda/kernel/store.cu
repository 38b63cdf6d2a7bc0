// Stores new keys and values at their slots: a warp a token and head, K and V side by side.
//
// Cost: reads and writes every element once, 16 bytes a lane where rows are aligned to that; a row's scale costs one
// reduction in registers. Bound by memory. Slots are checked here; a bad one stores nothing.
#include <string>

#include "core/checked.h"
#include "cuda/block/rows.h"
#include "cuda/context.h"
#include "cuda/kernel/store.h"
#include "kv/addressing.h"
#include "kv/codec/list.h"

namespace quire::cuda {
namespace {

constexpr int kWarps = 8;

// A row of K or V on its way.
struct RowPair {
  const void* from = nullptr;
  void* to = nullptr;
  std::int64_t source = 0;  // first element
  std::int64_t target = 0;
  std::int32_t size = 0;
  float tensor_scale = 1.0f;
  float* row_scale = nullptr;
};

// The place of a token's slot; page -1: store nothing.
__device__ KVPlace slot_place(const StoreParams& params, std::int64_t token) {
  const std::int64_t slot = params.store.slots[token];
  const std::int64_t end = params.store.cache.num_blocks * params.store.cache.block_size;
  if (slot >= end) report(params.record, Fault::kSlot, static_cast<std::int32_t>(token), slot, end);
  if (slot < 0 || slot >= end) return {-1, 0};
  return {slot / params.store.cache.block_size, slot % params.store.cache.block_size};
}

__device__ RowPair row_pair(const TokenRows& rows, const KVSource& cache, const KVRows* of_streams, std::int64_t token,
                            std::int32_t head, KVPlace place) {
  const KVRows& to = of_streams[head % cache.num_streams];
  const std::int32_t kv_head = head / cache.num_streams;
  RowPair pair{.from = rows.data,
               .to = to.data,
               .source = token * rows.token_stride + head * rows.head_stride,
               .target = row_offset(to, place, kv_head),
               .size = rows.size,
               .tensor_scale = to.tensor_scale};
  if (to.scales != nullptr) {
    pair.row_scale = to.scales + place.page * to.scale_page_stride + place.token * to.scale_token_stride +
                     kv_head * to.scale_head_stride;
  }
  return pair;
}

// kPer elements of T, moved as one word where they are 4, 8 or 16 bytes.
template <class T, int kPer>
struct alignas(sizeof(T) * kPer) Pack {
  T values[kPer];
};

// Copies rows of kBytes elements whose bits do not change.
template <class T, int kPer>
__device__ void copy_row(const RowPair& pair) {
  const std::int32_t lane = static_cast<std::int32_t>(threadIdx.x % 32);
  using Chunk = Pack<T, kPer>;
  const auto* from = reinterpret_cast<const Chunk*>(static_cast<const T*>(pair.from) + pair.source);
  auto* to = reinterpret_cast<Chunk*>(static_cast<T*>(pair.to) + pair.target);
  for (std::int32_t i = lane; i < pair.size / kPer; i += 32) to[i] = from[i];
}

template <class Source, class Codec, int kPer>
__device__ void convert_row(const RowPair& pair) {
  const std::int32_t lane = static_cast<std::int32_t>(threadIdx.x % 32);
  using In = Pack<typename Source::Code, kPer>;
  using Out = Pack<typename Codec::Code, kPer>;
  const auto* from = reinterpret_cast<const In*>(static_cast<const typename Source::Code*>(pair.from) + pair.source);
  auto* to = reinterpret_cast<Out*>(static_cast<typename Codec::Code*>(pair.to) + pair.target);
  Codec codec{};
  if constexpr (Codec::kScale == ScaleKind::kTensor) codec.scale = pair.tensor_scale;
  if constexpr (Codec::kScale == ScaleKind::kRow) {
    float largest = 0.0f;
    for (std::int32_t i = lane; i < pair.size / kPer; i += 32) {
      const In in = from[i];
#pragma unroll
      for (int j = 0; j < kPer; ++j) largest = fmaxf(largest, fabsf(Source::decode(in.values[j])));
    }
    const float scale = Codec::scale_of(warp_max(largest));
    if (lane == 0) *pair.row_scale = scale;
    codec = Codec::of_scale(scale);
  }
  for (std::int32_t i = lane; i < pair.size / kPer; i += 32) {
    const In in = from[i];
    Out out;
#pragma unroll
    for (int j = 0; j < kPer; ++j) out.values[j] = codec.encode(Source::decode(in.values[j]));
    to[i] = out;
  }
}

// `f(pair)` moves one row.
template <class Function>
__device__ void for_rows(const StoreParams& params, Function&& f) {
  const StoreArgs& store = params.store;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (index >= store.num_slots * store.key.num_heads) return;
  const std::int64_t token = index / store.key.num_heads;
  const auto head = static_cast<std::int32_t>(index % store.key.num_heads);
  const KVPlace place = slot_place(params, token);
  if (place.page < 0) return;
  f(row_pair(store.key, store.cache, store.cache.key, token, head, place));
  f(row_pair(store.value, store.cache, store.cache.value, token, head, place));
}

template <class T, int kPer>
__global__ void __launch_bounds__(kWarps * 32) copy_kernel(const __grid_constant__ StoreParams params) {
  for_rows(params, [](const RowPair& pair) { copy_row<T, kPer>(pair); });
}

template <class Source, class Codec, int kPer>
__global__ void __launch_bounds__(kWarps * 32) convert_kernel(const __grid_constant__ StoreParams params) {
  for_rows(params, [](const RowPair& pair) { convert_row<Source, Codec, kPer>(pair); });
}

// Whether rows of sources and of the cache can be moved `per` elements at a time.
bool rows_align(const StoreArgs& store, std::int64_t per) {
  const std::int64_t source_bytes = dtype_bytes(store.dtype);
  const std::int64_t cache_bytes = dtype_bytes(store.cache.dtype);
  std::uint64_t odd = 0;
  const auto need = [&](const void* data, std::int64_t bytes) {
    odd |= reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uint64_t>(per * bytes);
  };
  const auto need_stride = [&](std::int64_t stride) { odd |= static_cast<std::uint64_t>(stride % per); };
  for (const TokenRows* rows : {&store.key, &store.value}) {
    need(rows->data, source_bytes);
    need_stride(rows->token_stride);
    need_stride(rows->head_stride);
    need_stride(rows->size);
  }
  for (std::int32_t stream = 0; stream < store.cache.num_streams; ++stream) {
    for (const KVRows* rows : {&store.cache.key[stream], &store.cache.value[stream]}) {
      need(rows->data, cache_bytes);
      need_stride(rows->page_stride);
      need_stride(rows->token_stride);
      need_stride(rows->head_stride);
    }
  }
  return odd == 0;
}

unsigned blocks_of(const StoreParams& params) {
  return static_cast<unsigned>(ceil_div(params.store.num_slots * params.store.key.num_heads, kWarps));
}

template <class T>
void copy(const StoreParams& params, cudaStream_t stream) {
  constexpr int kWide = 16 / static_cast<int>(sizeof(T));
  if (rows_align(params.store, kWide)) {
    copy_kernel<T, kWide><<<blocks_of(params), kWarps * 32, 0, stream>>>(params);
  } else {
    copy_kernel<T, 1><<<blocks_of(params), kWarps * 32, 0, stream>>>(params);
  }
}

template <class Source, class Codec>
void convert(const StoreParams& params, cudaStream_t stream) {
  if (rows_align(params.store, 4)) {
    convert_kernel<Source, Codec, 4><<<blocks_of(params), kWarps * 32, 0, stream>>>(params);
  } else {
    convert_kernel<Source, Codec, 1><<<blocks_of(params), kWarps * 32, 0, stream>>>(params);
  }
}

template <class Codec>
bool convert_from(const StoreParams& params, cudaStream_t stream) {
  switch (params.store.dtype) {
    case DType::kFloat32:
      convert<Float32Element, Codec>(params, stream);
      return true;
    case DType::kFloat16:
      convert<Float16Element, Codec>(params, stream);
      return true;
    case DType::kBFloat16:
      convert<BFloat16Element, Codec>(params, stream);
      return true;
    default:
      return false;
  }
}

}  // namespace

Status launch_store(const StoreParams& params, cudaStream_t stream) {
  const StoreArgs& store = params.store;
  if (store.num_slots == 0) return {};
  if (store.num_slots * store.key.num_heads > std::int64_t{0x7fffffff} * kWarps) {
    return unsupported("slot_mapping: want fewer than 2^34 rows");
  }
  const bool row_scales = store.cache.key[0].scales != nullptr;
  bool known = true;
  if (store.dtype == store.cache.dtype && !row_scales) {
    const std::int64_t bytes = dtype_bytes(store.dtype);
    if (bytes == 4) copy<std::uint32_t>(params, stream);
    if (bytes == 2) copy<std::uint16_t>(params, stream);
    if (bytes == 1) copy<std::uint8_t>(params, stream);
  } else {
    known = visit_codec(store.cache.dtype, row_scales,
                        [&](auto codec) { known = convert_from<decltype(codec)>(params, stream); }) &&
            known;
  }
  if (!known)
    return unsupported("key.dtype: want float32, float16 or bfloat16, got " + std::string(dtype_name(store.dtype)));
  return to_status(cudaGetLastError(), "store_kernel");
}

}  // namespace quire::cuda
