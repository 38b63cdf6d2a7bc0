// Copies of single tokens inside a cache; each moves the bytes of a token's K and V rows and their scales.
#include <cstddef>
#include <cstring>
#include <string>

#include "quire/kv_cache.h"

namespace quire {
namespace {

struct Place {
  std::int64_t page = 0;
  std::int64_t token = 0;
};

Place place_of(const KVSource& cache, std::int64_t slot) { return {slot / cache.block_size, slot % cache.block_size}; }

void copy_rows(const KVRows& rows, const KVSource& cache, std::int64_t width, const SlotPair& pair) {
  const Place from = place_of(cache, pair.source);
  const Place to = place_of(cache, pair.destination);
  const std::int64_t element = dtype_bytes(cache.dtype);
  auto* data = static_cast<std::byte*>(rows.data);
  for (std::int64_t head = 0; head < cache.num_kv_heads; ++head) {
    const auto offset = [&](const Place& at) {
      return (at.page * rows.page_stride + at.token * rows.token_stride + head * rows.head_stride) * element;
    };
    std::memmove(data + offset(to), data + offset(from), static_cast<std::size_t>(width * element));
    if (rows.scales == nullptr) continue;
    const auto scale = [&](const Place& at) -> float& {
      return rows.scales[at.page * rows.scale_page_stride + at.token * rows.scale_token_stride +
                         head * rows.scale_head_stride];
    };
    scale(to) = scale(from);
  }
}

Status check_cache(const KVSource& cache, std::span<const SlotPair> pairs) {
  if (cache.device.type != DeviceType::kCpu) {
    return unsupported("caches: want memory of the host, got " + device_name(cache.device));
  }
  const std::int64_t num_slots = cache.num_blocks * cache.block_size;
  for (const SlotPair& pair : pairs) {
    for (const std::int64_t slot : {pair.source, pair.destination}) {
      if (slot >= 0 && slot < num_slots) continue;
      return out_of_range("pairs: want slots in [0, " + std::to_string(num_slots) + "), got " + std::to_string(slot));
    }
  }
  return {};
}

}  // namespace

Status move_tokens(std::span<const KVSource> caches, std::span<const SlotPair> pairs) {
  for (const KVSource& cache : caches) QUIRE_RETURN_IF_ERROR(check_cache(cache, pairs));
  for (const KVSource& cache : caches) {
    for (const SlotPair& pair : pairs) {
      if (pair.source == pair.destination) continue;
      for (int stream = 0; stream < cache.num_streams; ++stream) {
        copy_rows(cache.key[stream], cache, cache.head_size, pair);
        copy_rows(cache.value[stream], cache, cache.head_size_v, pair);
      }
    }
  }
  return {};
}

}  // namespace quire
