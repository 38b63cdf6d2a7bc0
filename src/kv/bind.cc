// Binding: from a cache's tensor, of any strides, to the pointers and strides that kernels take.
#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "kv/format.h"
#include "quire/kv_cache.h"

namespace quire {
namespace {

// How one half (K or V) of a row is sized and placed.
struct Half {
  std::int64_t head_size = 0;
  std::int64_t offset = 0;  // of the vector inside the row
};

Status check_dtype(const KVCacheSpec& spec, const TensorView& cache) {
  const DType want = kv_storage_dtype(spec.cache_dtype, spec.model_dtype);
  const bool as_bytes = cache.dtype == DType::kUInt8 && dtype_bytes(want) == 1;
  if (cache.dtype == want || as_bytes) return {};
  return invalid_argument("kv_cache.dtype: want " + std::string(dtype_name(want)) + " for " +
                          std::string(kv_cache_dtype_name(spec.cache_dtype)) + ", got " +
                          std::string(dtype_name(cache.dtype)));
}

Status check_shape(const TensorView& cache, std::span<const std::int64_t> want) {
  const bool same_rank = cache.rank == static_cast<std::int32_t>(want.size());
  if (same_rank && std::equal(want.begin(), want.end(), cache.shape.begin())) return {};
  TensorView wanted{.rank = static_cast<std::int32_t>(want.size())};
  wanted.data = cache.data;
  std::copy(want.begin(), want.end(), wanted.shape.begin());
  return invalid_argument("kv_cache.shape: want " + shape_string(wanted) + ", got " + shape_string(cache));
}

// Data, alignment, sane strides and a contiguous last dimension, by check_tensor.
Status check_view(const TensorView& cache) {
  switch (cache.rank) {
    case 4:
      return check_tensor(cache, {"kv_cache", {cache.dtype}, {kAny, kAny, kAny, kAny}});
    case 5:
      return check_tensor(cache, {"kv_cache", {cache.dtype}, {kAny, kAny, kAny, kAny, kAny}});
    default:
      return check_tensor(cache, {"kv_cache", {cache.dtype}, {kAny, kAny, kAny, kAny, kAny, kAny}});
  }
}

// Inline scales are float32 inside one-byte rows: every row must start at a multiple of 4 bytes.
Status check_scale_alignment(const TensorView& cache) {
  const auto off = reinterpret_cast<std::uintptr_t>(cache.data) % kInlineScaleBytes;
  if (off != 0) {
    return invalid_argument("kv_cache.data: want an address aligned to 4 bytes for inline scales, got one off by " +
                            std::to_string(off));
  }
  for (int dim = 0; dim + 1 < cache.rank; ++dim) {
    if (cache.size(dim) > 1 && cache.stride(dim) % kInlineScaleBytes != 0) {
      return invalid_argument("kv_cache.strides: want multiples of 4 for inline scales, got " +
                              std::to_string(cache.stride(dim)) + " in dimension " + std::to_string(dim));
    }
  }
  return {};
}

Status check_tensor_scale(const KVCacheSpec& spec, std::string_view name, float scale) {
  if (!is_quantized(spec.cache_dtype) || is_per_token_head(spec.cache_dtype)) return {};
  if (std::isfinite(scale) && scale > 0.0f) return {};
  return invalid_argument("scales." + std::string(name) + ": want a finite number > 0, got " + std::to_string(scale));
}

Status check_scale_cache(const KVCacheSpec& spec, std::string_view name, const TensorView& scales) {
  const bool wanted = is_per_token_head(spec.cache_dtype) && spec.scales == ScalePlacement::kSeparate;
  if (!wanted) {
    if (scales.empty()) return {};
    return invalid_argument(
        std::string(name) + ": want none for " + std::string(kv_cache_dtype_name(spec.cache_dtype)) +
        (is_per_token_head(spec.cache_dtype) ? " with inline scales" : "") + ", got " + shape_string(scales));
  }
  if (spec.format == KVCacheFormat::kDifferential) {
    return check_tensor(scales,
                        {name, {DType::kFloat32}, {2, spec.num_blocks, spec.block_size, spec.num_kv_heads / 2}, false});
  }
  return check_tensor(scales, {name, {DType::kFloat32}, {spec.num_blocks, spec.block_size, spec.num_kv_heads}, false});
}

Status check_binding(const KVCacheSpec& spec, const TensorView& cache, const KVScales& scales) {
  QUIRE_ASSIGN_OR_RETURN(const KVShape shape, kv_shape(spec));
  QUIRE_RETURN_IF_ERROR(check_shape(cache, shape.view()));
  QUIRE_RETURN_IF_ERROR(check_dtype(spec, cache));
  QUIRE_RETURN_IF_ERROR(check_view(cache));
  QUIRE_RETURN_IF_ERROR(check_no_overlap("kv_cache", cache));
  if (has_inline_scales(spec)) QUIRE_RETURN_IF_ERROR(check_scale_alignment(cache));
  QUIRE_RETURN_IF_ERROR(check_tensor_scale(spec, "k_scale", scales.k_scale));
  QUIRE_RETURN_IF_ERROR(check_tensor_scale(spec, "v_scale", scales.v_scale));
  for (const auto& [name, scale_cache] : {std::pair{"scales.k_scale_cache", scales.k_scale_cache},
                                          std::pair{"scales.v_scale_cache", scales.v_scale_cache}}) {
    QUIRE_RETURN_IF_ERROR(check_scale_cache(spec, name, scale_cache));
    if (!scale_cache.empty() && scale_cache.device != cache.device) {
      return invalid_argument(std::string(name) + ".device: want the cache's, " + device_name(cache.device) + ", got " +
                              device_name(scale_cache.device));
    }
  }
  return {};
}

// Rows of [B, bs, H, ...] `view`, the vector at `half.offset` of a row and an inline scale right behind it.
KVRows rows_of(const KVCacheSpec& spec, const TensorView& view, const Half& half) {
  const std::int64_t bytes = dtype_bytes(view.dtype);
  std::byte* first = static_cast<std::byte*>(view.data) + half.offset * bytes;
  KVRows rows{
      .data = first, .page_stride = view.stride(0), .token_stride = view.stride(1), .head_stride = view.stride(2)};
  if (has_inline_scales(spec)) {
    rows.scales = reinterpret_cast<float*>(first + half.head_size * bytes);
    rows.scale_page_stride = view.stride(0) / kInlineScaleBytes;
    rows.scale_token_stride = view.stride(1) / kInlineScaleBytes;
    rows.scale_head_stride = view.stride(2) / kInlineScaleBytes;
  }
  return rows;
}

// Takes the separate scales [B, bs, H].
void set_scales(KVRows& rows, const TensorView& scales) {
  if (scales.empty()) return;
  rows.scales = scales.as<float>();
  rows.scale_page_stride = scales.stride(0);
  rows.scale_token_stride = scales.stride(1);
  rows.scale_head_stride = scales.stride(2);
}

// The [B, bs, H, ...] part of the cache that holds K (0) or V (1) of a stream.
TensorView part_of(const KVCacheSpec& spec, const TensorView& cache, int stream, int kv) {
  switch (spec.format) {
    case KVCacheFormat::kKVFirst:
      return select(cache, 0, kv);
    case KVCacheFormat::kBlockFirst:
      return select(cache, 1, kv);
    case KVCacheFormat::kPackedKV:
      return cache;
    case KVCacheFormat::kDifferential:
      return select(select(cache, 0, stream), 0, kv);
  }
  return cache;
}

}  // namespace

Result<KVSource> bind_kv_cache(const KVCacheSpec& spec, const TensorView& cache, const KVScales& scales) {
  QUIRE_RETURN_IF_ERROR(check_binding(spec, cache, scales));
  const bool packed = spec.format == KVCacheFormat::kPackedKV;
  const bool differential = spec.format == KVCacheFormat::kDifferential;
  const bool per_tensor = is_quantized(spec.cache_dtype) && !is_per_token_head(spec.cache_dtype);
  const Half key{spec.head_size, 0};
  const Half value{kv_head_size_v(spec), packed ? spec.head_size + kv_row_pad(spec) : 0};
  KVSource source{.dtype = kv_storage_dtype(spec.cache_dtype, spec.model_dtype),
                  .num_streams = differential ? 2 : 1,
                  .num_kv_heads = differential ? spec.num_kv_heads / 2 : spec.num_kv_heads,
                  .head_size = spec.head_size,
                  .head_size_v = kv_head_size_v(spec),
                  .num_blocks = spec.num_blocks,
                  .block_size = spec.block_size,
                  .device = cache.device};
  for (int stream = 0; stream < source.num_streams; ++stream) {
    KVRows& keys = source.key[stream];
    KVRows& values = source.value[stream];
    keys = rows_of(spec, part_of(spec, cache, stream, 0), key);
    values = rows_of(spec, part_of(spec, cache, stream, 1), value);
    const bool by_stream = differential && !scales.k_scale_cache.empty();
    set_scales(keys, by_stream ? select(scales.k_scale_cache, 0, stream) : scales.k_scale_cache);
    set_scales(values, by_stream ? select(scales.v_scale_cache, 0, stream) : scales.v_scale_cache);
    if (per_tensor) {
      keys.tensor_scale = scales.k_scale;
      values.tensor_scale = scales.v_scale;
    }
  }
  return source;
}

namespace {

void fill_scales(const KVSource& cache, const KVRows& rows) {
  for (std::int64_t page = 0; page < cache.num_blocks; ++page) {
    for (std::int64_t token = 0; token < cache.block_size; ++token) {
      for (std::int64_t head = 0; head < cache.num_kv_heads; ++head) {
        rows.scales[page * rows.scale_page_stride + token * rows.scale_token_stride + head * rows.scale_head_stride] =
            1.0f;
      }
    }
  }
}

}  // namespace

Status reset_kv_scales(const KVSource& cache) {
  if (cache.num_streams < 1 || cache.num_streams > 2) {
    return invalid_argument("cache.num_streams: want 1 or 2, got " + std::to_string(cache.num_streams));
  }
  if (cache.key[0].scales == nullptr) return {};
  if (cache.device.type != DeviceType::kCpu) {
    return unsupported("cache.device: want cpu, got " + device_name(cache.device));
  }
  for (int stream = 0; stream < cache.num_streams; ++stream) {
    fill_scales(cache, cache.key[stream]);
    fill_scales(cache, cache.value[stream]);
  }
  return {};
}

}  // namespace quire
