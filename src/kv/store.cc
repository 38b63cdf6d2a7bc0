// The cache update on the CPU: rotates, rounds and stores each token's rows at its slot.
//
// Cost: reads and writes every element once (twice reads where a row's scale must be known first). Bound by memory
// where the element is copied, by conversions where it is quantised. Each block of the cache belongs to one thread, so
// that tokens that name the same slot are stored in their order whatever the number of threads.
#include "kv/store.h"

#include <omp.h>

#include <cstring>

#include "kv/codec/list.h"
#include "kv/rope.h"

namespace quire {
namespace {

// Elements below which waking threads costs more than it saves.
constexpr std::int64_t kParallelElements = std::int64_t{1} << 16;

// Converts one row of `size` elements; `tensor_scale` is the cache's, `row_scale` receives the row's if it has one.
using StoreRow = void (*)(const void* from, void* to, std::int32_t size, float tensor_scale, float* row_scale);

// The largest magnitude of a row, NaN left out. As integers, magnitudes compare like floats.
template <class Source>
float largest_magnitude(const typename Source::Code* row, std::int32_t size) {
  std::int32_t largest = 0;
  for (std::int32_t i = 0; i < size; ++i) {
    const auto magnitude = static_cast<std::int32_t>(float_bits(Source::decode(row[i])) & 0x7fffffffu);
    const std::int32_t number = magnitude > 0x7f800000 ? 0 : magnitude;
    largest = number > largest ? number : largest;
  }
  return bits_float(static_cast<std::uint32_t>(largest));
}

template <class Codec>
Codec make_codec(float tensor_scale) {
  if constexpr (Codec::kScale == ScaleKind::kTensor) return {tensor_scale};
  return {};
}

template <class Source, class Codec>
void store_row(const void* from, void* to, std::int32_t size, float tensor_scale, float* row_scale) {
  const auto* __restrict source = static_cast<const typename Source::Code*>(from);
  auto* __restrict target = static_cast<typename Codec::Code*>(to);
  Codec codec = make_codec<Codec>(tensor_scale);
  if constexpr (Codec::kScale == ScaleKind::kRow) {
    *row_scale = Codec::scale_of(largest_magnitude<Source>(source, size));
    codec = Codec::of_scale(*row_scale);
  }
  for (std::int32_t i = 0; i < size; ++i) target[i] = codec.encode(Source::decode(source[i]));
}

template <int kBytes>
void copy_row(const void* from, void* to, std::int32_t size, float, float*) {
  std::memcpy(to, from, static_cast<std::size_t>(size) * kBytes);
}

StoreRow copier_of(DType dtype) {
  const std::int64_t bytes = dtype_bytes(dtype);
  if (bytes == 4) return copy_row<4>;
  return bytes == 2 ? copy_row<2> : copy_row<1>;
}

template <class Codec>
StoreRow store_row_from(DType source) {
  switch (source) {
    case DType::kFloat16:
      return store_row<Float16Element, Codec>;
    case DType::kBFloat16:
      return store_row<BFloat16Element, Codec>;
    default:
      return store_row<Float32Element, Codec>;
  }
}

StoreRow store_row_of(const StoreArgs& args) {
  if (args.dtype == args.cache.dtype) return copier_of(args.dtype);
  StoreRow found = nullptr;
  visit_codec(args.cache.dtype, args.cache.key[0].scales != nullptr,
              [&](auto codec) { found = store_row_from<decltype(codec)>(args.dtype); });
  return found;
}

// Stores all heads of one token of K (or V). `rows` are the streams' rows; head p * num_streams + s is head p of s.
void store_token(const StoreArgs& args, const TokenRows& from, const KVRows* rows, std::int64_t token,
                 StoreRow store_one) {
  const std::int64_t page = args.slots[token] / args.cache.block_size;
  const std::int64_t place = args.slots[token] % args.cache.block_size;
  const std::int64_t source_bytes = dtype_bytes(args.dtype);
  const std::int64_t target_bytes = dtype_bytes(args.cache.dtype);
  for (std::int32_t head = 0; head < from.num_heads; ++head) {
    const KVRows& to = rows[head % args.cache.num_streams];
    const std::int64_t to_head = head / args.cache.num_streams;
    const auto* source =
        static_cast<const std::byte*>(from.data) + (token * from.token_stride + head * from.head_stride) * source_bytes;
    auto* target = static_cast<std::byte*>(to.data) +
                   (page * to.page_stride + place * to.token_stride + to_head * to.head_stride) * target_bytes;
    float* scale = to.scales == nullptr ? nullptr
                                        : to.scales + page * to.scale_page_stride + place * to.scale_token_stride +
                                              to_head * to.scale_head_stride;
    store_one(source, target, from.size, to.tensor_scale, scale);
  }
}

void run_store(const StoreArgs& args, const RopeStoreArgs* rope) {
  const StoreRow store_one = store_row_of(args);
  const std::int64_t width = static_cast<std::int64_t>(args.key.num_heads) * (args.key.size + args.value.size);
  const std::int64_t query_width = rope == nullptr ? 0 : std::int64_t{rope->query.num_heads} * rope->query.size;
  const std::int64_t queries = rope == nullptr ? 0 : rope->num_positions;
  const bool parallel = args.num_slots * width + queries * query_width >= kParallelElements;
  const auto run_part = [&](std::int64_t thread, std::int64_t threads) {
    for (std::int64_t token = queries * thread / threads; token < queries * (thread + 1) / threads; ++token) {
      rotate_token(*rope, rope->query, args.dtype, token);
    }
    for (std::int64_t token = 0; token < args.num_slots; ++token) {
      const std::int64_t slot = args.slots[token];
      if (slot < 0 || slot / args.cache.block_size % threads != thread) continue;
      if (rope != nullptr && token < rope->num_positions) rotate_token(*rope, args.key, args.dtype, token);
      store_token(args, args.key, args.cache.key, token, store_one);
      store_token(args, args.value, args.cache.value, token, store_one);
    }
  };
  if (!parallel) return run_part(0, 1);  // a parallel region costs system calls even where it has one thread
#pragma omp parallel
  run_part(omp_get_thread_num(), omp_get_num_threads());
}

Status check_on_cpu(const StoreArgs& args) {
  if (args.cache.device.type == DeviceType::kCpu) return {};
  return unsupported("cache.device: want cpu, got " + device_name(args.cache.device));
}

}  // namespace

Status reshape_and_cache_flash(const TensorView& key, const TensorView& value, const KVSource& cache,
                               const TensorView& slot_mapping) {
  QUIRE_ASSIGN_OR_RETURN(const StoreArgs args, check_store(key, value, cache, slot_mapping));
  QUIRE_RETURN_IF_ERROR(check_on_cpu(args));
  QUIRE_RETURN_IF_ERROR(check_slots(args));
  run_store(args, nullptr);
  return {};
}

Status rope_and_cache_flash(const RopeArgs& rope, const TensorView& key, const TensorView& value, const KVSource& cache,
                            const TensorView& slot_mapping) {
  QUIRE_ASSIGN_OR_RETURN(const StoreArgs args, check_store(key, value, cache, slot_mapping));
  QUIRE_ASSIGN_OR_RETURN(const RopeStoreArgs rotation, check_rope(rope, args));
  QUIRE_RETURN_IF_ERROR(check_no_overlap("key", key));
  QUIRE_RETURN_IF_ERROR(check_on_cpu(args));
  QUIRE_RETURN_IF_ERROR(check_slots(args));
  QUIRE_RETURN_IF_ERROR(check_positions(rotation));
  run_store(args, &rotation);
  return {};
}

}  // namespace quire
