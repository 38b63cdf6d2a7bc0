// What a cache spec says of one row: sizes that the shape, the binding and the writers all need.
#pragma once

#include <array>
#include <span>

#include "quire/kv_cache.h"

namespace quire {

// An inline scale is one float32 behind the row's one-byte elements.
inline constexpr std::int32_t kInlineScaleBytes = 4;

inline std::int32_t kv_head_size_v(const KVCacheSpec& spec) {
  return spec.head_size_v == 0 ? spec.head_size : spec.head_size_v;
}

inline bool has_inline_scales(const KVCacheSpec& spec) {
  return is_per_token_head(spec.cache_dtype) && spec.scales == ScalePlacement::kInline;
}

// Elements that follow each vector of a row for its scale.
inline std::int64_t kv_row_pad(const KVCacheSpec& spec) { return has_inline_scales(spec) ? kInlineScaleBytes : 0; }

// The logical shape in place, for callers that must not allocate.
struct KVShape {
  std::array<std::int64_t, 6> sizes{};
  std::size_t rank = 0;

  std::span<const std::int64_t> view() const { return {sizes.data(), rank}; }
};
// As kv_cache_shape.
Result<KVShape> kv_shape(const KVCacheSpec& spec);

}  // namespace quire
