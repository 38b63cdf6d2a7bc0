// Stores new keys and values at their slots, rotated before where that is asked for: a warp a token and head, K and V
// one after the other. It takes rows of any size and alignment; the packed kernels take most others.
//
// Cost: reads and writes every element once, rotated ones twice (the second time out of L1); a row's scale costs one
// reduction in registers. Bound by memory, and by latency where rows are not aligned. Slots and positions are checked
// here; a token with a bad one stores nothing.
#include <algorithm>
#include <array>
#include <bit>
#include <string>

#include "core/checked.h"
#include "cuda/block/rows.h"
#include "cuda/block/store_row.h"
#include "cuda/context.h"
#include "kv/codec/list.h"

namespace quire::cuda {
namespace {

constexpr int kWarps = 8;

// Rotates the first rotary_dim elements of a row in place, a lane a pair; in float32, rounded once. Not inlined, as it
// knows every dtype.
__device__ __noinline__ void rotate_row(const StoreParams& params, const TokenRows& rows, std::int64_t token,
                                        std::int32_t head, std::int64_t position) {
  const RopeStoreArgs& rope = params.rope;
  const DType dtype = params.store.dtype;
  const std::int32_t lane = static_cast<std::int32_t>(threadIdx.x % 32);
  const std::int64_t row = token * rows.token_stride + head * rows.head_stride;
  const std::int64_t angles = position * rope.cos_sin_stride;
  const std::int32_t half = rope.rotary_dim / 2;
  for (std::int32_t i = lane; i < half; i += 32) {
    const std::int64_t first = row + (rope.style == RopeStyle::kNeox ? i : 2 * i);
    const std::int64_t second = rope.style == RopeStyle::kNeox ? first + half : first + 1;
    const float cosine = load_as_float(rope.cos_sin, rope.cos_sin_dtype, angles + i);
    const float sine = load_as_float(rope.cos_sin, rope.cos_sin_dtype, angles + half + i);
    const float x = load_as_float(rows.data, dtype, first);
    const float y = load_as_float(rows.data, dtype, second);
    store_from_float(rows.data, dtype, first, __fsub_rn(__fmul_rn(x, cosine), __fmul_rn(y, sine)));
    store_from_float(rows.data, dtype, second, __fadd_rn(__fmul_rn(y, cosine), __fmul_rn(x, sine)));
  }
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

// Rows of Source, kPer elements at a time.
template <class Source, int kPer>
struct PackedSource {
  static constexpr int kPack = kPer;
  const Pack<typename Source::Code, kPer>* data;

  __device__ explicit PackedSource(const StoreParams&, const RowPair& pair)
      : data(reinterpret_cast<decltype(data)>(static_cast<const typename Source::Code*>(pair.from) + pair.source)) {}
  __device__ void load(std::int32_t i, float (&values)[kPer]) const {
    const Pack<typename Source::Code, kPer> in = data[i];
#pragma unroll
    for (int j = 0; j < kPer; ++j) values[j] = Source::decode(in.values[j]);
  }
};

// Rows of any dtype, element by element, for those that are not aligned.
struct AnySource {
  static constexpr int kPack = 1;
  const void* data;
  DType dtype;
  std::int64_t first;

  __device__ explicit AnySource(const StoreParams& params, const RowPair& pair)
      : data(pair.from), dtype(params.store.dtype), first(pair.source) {}
  __device__ void load(std::int32_t i, float (&values)[1]) const { values[0] = load_as_float(data, dtype, first + i); }
};

template <class Source, class Codec>
__device__ void convert_row(const StoreParams& params, const RowPair& pair) {
  constexpr int kPer = Source::kPack;
  const std::int32_t lane = static_cast<std::int32_t>(threadIdx.x % 32);
  using Out = Pack<typename Codec::Code, kPer>;
  const Source source(params, pair);
  auto* to = reinterpret_cast<Out*>(static_cast<typename Codec::Code*>(pair.to) + pair.target);
  Codec codec{};
  float values[kPer];
  if constexpr (Codec::kScale == ScaleKind::kTensor) codec.scale = pair.tensor_scale;
  if constexpr (Codec::kScale == ScaleKind::kRow) {
    float largest = 0.0f;
    for (std::int32_t i = lane; i < pair.size / kPer; i += 32) {
      source.load(i, values);
#pragma unroll
      for (const float value : values) largest = fmaxf(largest, fabsf(value));
    }
    const float scale = Codec::scale_of(warp_max(largest));
    if (lane == 0) *pair.row_scale = scale;
    codec = Codec::of_scale(scale);
  }
  for (std::int32_t i = lane; i < pair.size / kPer; i += 32) {
    Out out;
    source.load(i, values);
#pragma unroll
    for (int j = 0; j < kPer; ++j) out.values[j] = codec.encode(values[j]);
    to[i] = out;
  }
}

// `f(pair)` moves one row.
template <class Function>
__device__ void for_rows(const StoreParams& params, Function&& f) {
  const StoreArgs& store = params.store;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (index >= params.num_tokens() * params.rows_of_token()) return;
  const std::int64_t token = index / params.rows_of_token();
  const auto row = static_cast<std::int32_t>(index % params.rows_of_token());
  const std::int32_t q_heads = params.rope.query.num_heads;
  const bool rotated = token < params.rope.num_positions;
  const std::int64_t position = rotated ? checked_position(params, token) : 0;
  if (position < 0) return;
  if (row < q_heads) {
    if (rotated) rotate_row(params, params.rope.query, token, row, position);
    return;
  }
  if (token >= store.num_slots) return;
  const KVPlace place = slot_place(params, token, store.slots[token]);
  if (place.page < 0) return;
  const std::int32_t head = row - q_heads;
  if (rotated) rotate_row(params, store.key, token, head, position);
  __syncwarp();
  f(row_pair(store.key, store.cache, store.cache.key, token, head, place));
  f(row_pair(store.value, store.cache, store.cache.value, token, head, place));
}

template <class T, int kPer>
__global__ void __launch_bounds__(kWarps * 32) copy_kernel(const __grid_constant__ StoreParams params) {
  for_rows(params, [](const RowPair& pair) { copy_row<T, kPer>(pair); });
}

template <class Source, class Codec>
__global__ void __launch_bounds__(kWarps * 32) convert_kernel(const __grid_constant__ StoreParams params) {
  for_rows(params, [&](const RowPair& pair) { convert_row<Source, Codec>(params, pair); });
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
  return static_cast<unsigned>(ceil_div(params.num_tokens() * params.rows_of_token(), kWarps));
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
bool convert(const StoreParams& params, cudaStream_t stream) {
  convert_kernel<Source, Codec><<<blocks_of(params), kWarps * 32, 0, stream>>>(params);
  return true;
}

template <class Codec>
bool convert_from(const StoreParams& params, cudaStream_t stream) {
  const bool packed = rows_align(params.store, 4);
  switch (params.store.dtype) {
    case DType::kFloat32:
      if (packed) return convert<PackedSource<Float32Element, 4>, Codec>(params, stream);
      break;
    case DType::kFloat16:
      if (packed) return convert<PackedSource<Float16Element, 4>, Codec>(params, stream);
      break;
    case DType::kBFloat16:
      if (packed) return convert<PackedSource<BFloat16Element, 4>, Codec>(params, stream);
      break;
    default:
      return false;
  }
  return convert<AnySource, Codec>(params, stream);
}

constexpr std::int64_t kMostPackedTokens = 65535 * 4;  // blocks of 4 teams at least along y of a grid
constexpr std::int32_t kPack = 8;

// The strides of all rows, or of all scales; `fits` becomes false where they differ or where an offset inside a page is
// no 32-bit number.
PackedStrides common_strides(const KVSource& cache, bool of_scales, bool& fits) {
  const auto read = [&](const KVRows& rows) -> std::array<std::int64_t, 3> {
    if (of_scales) return {rows.scale_page_stride, rows.scale_token_stride, rows.scale_head_stride};
    return {rows.page_stride, rows.token_stride, rows.head_stride};
  };
  const std::array<std::int64_t, 3> first = read(cache.key[0]);
  for (std::int32_t stream = 0; stream < cache.num_streams; ++stream) {
    fits = fits && read(cache.key[stream]) == first && read(cache.value[stream]) == first;
  }
  constexpr std::int64_t kMost = 0x7fffffff;
  fits = fits && first[0] <= kMost && first[1] <= kMost && first[2] <= kMost &&
         first[1] * cache.block_size + first[2] * cache.num_kv_heads <= kMost;
  return {static_cast<std::uint32_t>(first[0]), static_cast<std::uint32_t>(first[1]),
          static_cast<std::uint32_t>(first[2])};
}

// Whether addresses are all multiples of what packed accesses want.
class Alignment {
 public:
  void need(std::int64_t number, std::int64_t alignment) { odd_ |= number % alignment != 0; }
  void need(const void* data, std::int64_t alignment) {
    odd_ |= reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(alignment) != 0;
  }
  void need(const TokenRows& rows, std::int64_t element_bytes) {
    need(rows.data, 16);
    need(rows.token_stride * element_bytes, 16);
    need(rows.head_stride * element_bytes, 16);
    need(rows.size, kPack);
  }
  bool holds() const { return !odd_; }

 private:
  bool odd_ = false;
};

// Whether packed kernels can take the rows: sizes of whole packs, few enough for a warp, everything aligned.
bool can_pack(const PackedParams& params) {
  const StoreArgs& store = params.base.store;
  const RopeStoreArgs& rope = params.base.rope;
  const std::int64_t bytes = dtype_bytes(store.dtype);
  const std::int64_t cache_bytes = dtype_bytes(store.cache.dtype);
  if (bytes == 1 || std::max(store.key.size, store.value.size) > 32 * kPack) return false;
  if (params.base.num_tokens() > kMostPackedTokens || store.cache.num_blocks > 0x7fffffff) return false;
  Alignment aligned;
  aligned.need(store.key, bytes);
  aligned.need(store.value, bytes);
  const std::int64_t alignment = cache_bytes == 1 ? (params.wide_cache ? 8 : 4) : 16;
  for (std::int32_t stream = 0; stream < store.cache.num_streams; ++stream) {
    aligned.need(store.cache.key[stream].data, alignment);
    aligned.need(store.cache.value[stream].data, alignment);
  }
  for (const std::uint32_t stride : {params.rows.page, params.rows.token, params.rows.head}) {
    aligned.need(stride * cache_bytes, alignment);
  }
  if (params.base.rotates()) {
    if (rope.query.num_heads > 0) aligned.need(rope.query, bytes);
    aligned.need(rope.cos_sin, 16);
    aligned.need(rope.cos_sin_stride, kPack);
    aligned.need(rope.rotary_dim, 2 * kPack);
  }
  return aligned.holds();
}

bool launch_packed(const StoreParams& base, cudaStream_t stream) {
  PackedParams params{.base = base};
  bool fits = true;
  params.rows = common_strides(base.store.cache, false, fits);
  if (base.store.cache.key[0].scales != nullptr) params.scales = common_strides(base.store.cache, true, fits);
  if (!fits) return false;
  if (!can_pack(params)) {
    params.wide_cache = false;
    if (!can_pack(params)) return false;
  }
  const auto packs = static_cast<std::uint32_t>(std::max(base.store.key.size, base.store.value.size) / kPack);
  params.team_lanes = static_cast<std::int32_t>(std::bit_ceil(packs));
  params.team_shift = std::countr_zero(std::bit_ceil(packs));
  if (base.store.dtype == DType::kFloat32) return launch_packed_float32(params, stream);
  if (base.store.dtype == DType::kFloat16) return launch_packed_float16(params, stream);
  return launch_packed_bfloat16(params, stream);
}

}  // namespace

Status launch_store(const StoreParams& args, cudaStream_t stream) {
  const StoreArgs& store = args.store;
  if (args.num_tokens() == 0) return {};
  if (args.num_tokens() * args.rows_of_token() > std::int64_t{0x7fffffff} * kWarps) {
    return unsupported("slot_mapping: want fewer than 2^34 rows");
  }
  StoreParams params = args;
  const auto block_size = static_cast<std::uint32_t>(store.cache.block_size);
  params.block_shift = std::has_single_bit(block_size) ? std::countr_zero(block_size) : -1;
  if (launch_packed(params, stream)) return to_status(cudaGetLastError(), "packed_store_kernel");
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
