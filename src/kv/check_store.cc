// Checks of cache updates; nothing has been written when one of them fails.
#include <string>

#include "core/checked.h"
#include "kv/codec/list.h"
#include "kv/store.h"

namespace quire {
namespace {

std::string number(std::int64_t value) { return std::to_string(value); }

Status check_same_device(std::string_view name, const TensorView& tensor, Device want) {
  if (tensor.device == want) return {};
  return invalid_argument(std::string(name) + ".device: want the cache's, " + device_name(want) + ", got " +
                          device_name(tensor.device));
}

Status check_aligned(const std::string& name, const void* data, std::int64_t bytes) {
  if (data == nullptr) return invalid_argument(name + ": want data, got a null pointer");
  const auto off = reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(bytes);
  if (off == 0) return {};
  return invalid_argument(name + ": want an address aligned to " + number(bytes) + " bytes, got one off by " +
                          std::to_string(off));
}

Status check_rows(const std::string& name, const KVSource& cache, const KVRows& rows, bool has_scales) {
  QUIRE_RETURN_IF_ERROR(check_aligned(name + ".data", rows.data, dtype_bytes(cache.dtype)));
  if ((rows.scales != nullptr) != has_scales) {
    return invalid_argument(name + ".scales: want row scales for all of keys and values or for none");
  }
  if (has_scales) QUIRE_RETURN_IF_ERROR(check_aligned(name + ".scales", rows.scales, sizeof(float)));
  return {};
}

// Keys and values that are fp8 already are stored as they are; that needs a cache of the same dtype and no row scales.
Status check_source_dtype(const TensorView& key, const TensorView& value, const KVSource& cache) {
  const bool stores_fp8 = is_float8(cache.dtype) && cache.key[0].scales == nullptr;
  if (!is_activation(key.dtype) && !(stores_fp8 && key.dtype == cache.dtype)) {
    std::string want = "float32, float16 or bfloat16";
    if (stores_fp8) want.append(", or the cache's ").append(dtype_name(cache.dtype));
    return invalid_argument("key.dtype: want " + want + ", got " + std::string(dtype_name(key.dtype)));
  }
  if (value.dtype != key.dtype) {
    return invalid_argument("value.dtype: want key's, " + std::string(dtype_name(key.dtype)) + ", got " +
                            std::string(dtype_name(value.dtype)));
  }
  return {};
}

TokenRows rows_of(const TensorView& tensor) {
  return {.data = tensor.data,
          .num_rows = tensor.size(0),
          .token_stride = tensor.stride(0),
          .head_stride = tensor.stride(1),
          .num_heads = static_cast<std::int32_t>(tensor.size(1)),
          .size = static_cast<std::int32_t>(tensor.size(2))};
}

Status check_row_count(std::string_view name, const TensorView& tensor, std::int64_t num_slots) {
  if (tensor.size(0) >= num_slots) return {};
  return invalid_argument(std::string(name) + ".shape: want at least " + number(num_slots) +
                          " rows, one for each slot, got " + number(tensor.size(0)));
}

Status check_rotary_dim(const TensorView& cos_sin, std::int32_t head_size) {
  const std::int64_t rotary_dim = cos_sin.size(1);
  if (rotary_dim > 0 && rotary_dim <= head_size && rotary_dim % 2 == 0) return {};
  return invalid_argument("rope.cos_sin_cache.shape: want an even rotary_dim in [2, " + number(head_size) + "], got " +
                          number(rotary_dim));
}

template <class Position>
Status check_position_values(const RopeStoreArgs& rope) {
  const auto* positions = static_cast<const Position*>(rope.positions);
  for (std::int64_t i = 0; i < rope.num_positions; ++i) {
    if (positions[i] >= 0 && positions[i] < rope.max_position) continue;
    return out_of_range("rope.positions[" + number(i) + "]: want [0, " + number(rope.max_position) + "), got " +
                        number(positions[i]));
  }
  return {};
}

}  // namespace

Status check_cache(std::string_view name, const KVSource& cache) {
  const std::string cache_name(name);
  const auto positive = [&](const char* field, std::int64_t value) -> Status {
    if (value > 0) return {};
    return invalid_argument(cache_name + "." + field + ": want > 0, got " + number(value));
  };
  QUIRE_RETURN_IF_ERROR(positive("num_blocks", cache.num_blocks));
  QUIRE_RETURN_IF_ERROR(positive("block_size", cache.block_size));
  QUIRE_RETURN_IF_ERROR(positive("num_kv_heads", cache.num_kv_heads));
  QUIRE_RETURN_IF_ERROR(positive("head_size", cache.head_size));
  QUIRE_RETURN_IF_ERROR(positive("head_size_v", cache.head_size_v));
  if (cache.num_streams != 1 && cache.num_streams != 2) {
    return invalid_argument(cache_name + ".num_streams: want 1 or 2, got " + number(cache.num_streams));
  }
  if (!checked_mul(cache.num_blocks, cache.block_size)) {
    return resource_exhausted(cache_name + ": want fewer than 2^63 slots, got " + number(cache.num_blocks) +
                              " blocks of " + number(cache.block_size));
  }
  const bool has_scales = cache.key[0].scales != nullptr;
  if (!visit_codec(cache.dtype, has_scales, [](auto) {})) {
    return unsupported(cache_name + ".dtype: want float32, float16, bfloat16, float8_e4m3fn or float8_e5m2 without " +
                       "row scales, or int8 or float8_e4m3fn with them, got " + std::string(dtype_name(cache.dtype)) +
                       (has_scales ? " with row scales" : " without row scales"));
  }
  for (int stream = 0; stream < cache.num_streams; ++stream) {
    const std::string index = std::string("[").append(number(stream)).append("]");
    QUIRE_RETURN_IF_ERROR(check_rows(cache_name + ".key" + index, cache, cache.key[stream], has_scales));
    QUIRE_RETURN_IF_ERROR(check_rows(cache_name + ".value" + index, cache, cache.value[stream], has_scales));
  }
  return {};
}

Result<StoreArgs> check_store(const TensorView& key, const TensorView& value, const KVSource& cache,
                              const TensorView& slot_mapping) {
  QUIRE_RETURN_IF_ERROR(check_cache("cache", cache));
  QUIRE_RETURN_IF_ERROR(check_source_dtype(key, value, cache));
  const std::int64_t num_heads = static_cast<std::int64_t>(cache.num_kv_heads) * cache.num_streams;
  QUIRE_RETURN_IF_ERROR(check_tensor(key, {"key", {key.dtype}, {kAny, num_heads, cache.head_size}}));
  QUIRE_RETURN_IF_ERROR(check_tensor(value, {"value", {value.dtype}, {kAny, num_heads, cache.head_size_v}}));
  QUIRE_RETURN_IF_ERROR(check_tensor(slot_mapping, {"slot_mapping", {DType::kInt64}, {kAny}}));
  QUIRE_RETURN_IF_ERROR(check_row_count("key", key, slot_mapping.size(0)));
  QUIRE_RETURN_IF_ERROR(check_row_count("value", value, slot_mapping.size(0)));
  QUIRE_RETURN_IF_ERROR(check_same_device("key", key, cache.device));
  QUIRE_RETURN_IF_ERROR(check_same_device("value", value, cache.device));
  QUIRE_RETURN_IF_ERROR(check_same_device("slot_mapping", slot_mapping, cache.device));
  return StoreArgs{.key = rows_of(key),
                   .value = rows_of(value),
                   .dtype = key.dtype,
                   .slots = slot_mapping.as<const std::int64_t>(),
                   .num_slots = slot_mapping.size(0),
                   .cache = cache};
}

Status check_slots(const StoreArgs& args) {
  const std::int64_t end = args.cache.num_blocks * args.cache.block_size;
  for (std::int64_t i = 0; i < args.num_slots; ++i) {
    if (args.slots[i] < end) continue;
    return out_of_range("slot_mapping[" + number(i) + "]: want a slot below " + number(end) + " (" +
                        number(args.cache.num_blocks) + " blocks of " + number(args.cache.block_size) +
                        " tokens) or a negative one, got " + number(args.slots[i]));
  }
  return {};
}

Result<RopeStoreArgs> check_rope(const RopeArgs& rope, const StoreArgs& store) {
  const Device device = store.cache.device;
  if (!is_activation(store.dtype)) {
    return invalid_argument("key.dtype: want float32, float16 or bfloat16 to rotate, got " +
                            std::string(dtype_name(store.dtype)));
  }
  const TensorView& cos_sin = rope.cos_sin_cache;
  QUIRE_RETURN_IF_ERROR(check_tensor(cos_sin, {"rope.cos_sin_cache", {DType::kFloat32, store.dtype}, {kAny, kAny}}));
  QUIRE_RETURN_IF_ERROR(check_rotary_dim(cos_sin, store.key.size));
  QUIRE_RETURN_IF_ERROR(check_tensor(rope.positions, {"rope.positions", {DType::kInt64, DType::kInt32}, {kAny}}));
  QUIRE_RETURN_IF_ERROR(check_same_device("rope.cos_sin_cache", cos_sin, device));
  QUIRE_RETURN_IF_ERROR(check_same_device("rope.positions", rope.positions, device));
  RopeStoreArgs args{.positions = rope.positions.data,
                     .wide_positions = rope.positions.dtype == DType::kInt64,
                     .num_positions = rope.positions.size(0),
                     .cos_sin = cos_sin.data,
                     .cos_sin_dtype = cos_sin.dtype,
                     .cos_sin_stride = cos_sin.stride(0),
                     .max_position = cos_sin.size(0),
                     .rotary_dim = static_cast<std::int32_t>(cos_sin.size(1)),
                     .style = rope.style};
  if (rope.query.empty()) return args;
  QUIRE_RETURN_IF_ERROR(check_tensor(rope.query, {"rope.query", {store.dtype}, {kAny, kAny, store.key.size}}));
  QUIRE_RETURN_IF_ERROR(check_same_device("rope.query", rope.query, device));
  QUIRE_RETURN_IF_ERROR(check_no_overlap("rope.query", rope.query));
  if (rope.query.size(0) < args.num_positions) {
    return invalid_argument("rope.query.shape: want at least " + number(args.num_positions) +
                            " rows, one for each position, got " + number(rope.query.size(0)));
  }
  args.query = rows_of(rope.query);
  return args;
}

Status check_positions(const RopeStoreArgs& rope) {
  return rope.wide_positions ? check_position_values<std::int64_t>(rope) : check_position_values<std::int32_t>(rope);
}

}  // namespace quire
