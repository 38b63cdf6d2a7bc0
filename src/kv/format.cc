// Names of cache dtypes and layouts, and the shape, order and size that a cache spec asks for.
#include <array>
#include <cstdlib>
#include <limits>
#include <string>

#include "core/checked.h"
#include "kv/format.h"
#include "quire/kv_cache.h"

namespace quire {
namespace {

constexpr std::array<KVCacheDType, 8> kCacheDTypes{
    KVCacheDType::kAuto,    KVCacheDType::kFloat32, KVCacheDType::kFloat16,          KVCacheDType::kBFloat16,
    KVCacheDType::kFp8E4M3, KVCacheDType::kFp8E5M2, KVCacheDType::kInt8PerTokenHead, KVCacheDType::kFp8PerTokenHead};

Status wanted_positive(std::string_view name, std::int64_t got) {
  return invalid_argument("spec." + std::string(name) + ": want > 0, got " + std::to_string(got));
}

Status check_sizes(const KVCacheSpec& spec) {
  if (spec.num_blocks <= 0) return wanted_positive("num_blocks", spec.num_blocks);
  if (spec.block_size <= 0) return wanted_positive("block_size", spec.block_size);
  if (spec.num_kv_heads <= 0) return wanted_positive("num_kv_heads", spec.num_kv_heads);
  if (spec.head_size <= 0) return wanted_positive("head_size", spec.head_size);
  if (spec.head_size_v < 0)
    return invalid_argument("spec.head_size_v: want >= 0, got " + std::to_string(spec.head_size_v));
  if (!is_activation(spec.model_dtype)) {
    return invalid_argument("spec.model_dtype: want float32, float16 or bfloat16, got " +
                            std::string(dtype_name(spec.model_dtype)));
  }
  return {};
}

Status check_format(const KVCacheSpec& spec) {
  const std::int32_t head_size_v = kv_head_size_v(spec);
  if (spec.format != KVCacheFormat::kPackedKV && head_size_v != spec.head_size) {
    return invalid_argument("spec.head_size_v: want head_size " + std::to_string(spec.head_size) +
                            " in every format but kPackedKV, got " + std::to_string(head_size_v));
  }
  if (spec.format == KVCacheFormat::kDifferential && spec.num_kv_heads % 2 != 0) {
    return invalid_argument("spec.num_kv_heads: want an even number for a differential cache, got " +
                            std::to_string(spec.num_kv_heads));
  }
  if (kv_row_pad(spec) == 0) return {};
  if (spec.head_size % kInlineScaleBytes != 0) {
    return invalid_argument("spec.head_size: want a multiple of 4 for inline scales, got " +
                            std::to_string(spec.head_size));
  }
  if (head_size_v % kInlineScaleBytes != 0) {
    return invalid_argument("spec.head_size_v: want a multiple of 4 for inline scales, got " +
                            std::to_string(head_size_v));
  }
  return {};
}

KVShape logical_shape(const KVCacheSpec& spec) {
  const std::int64_t pad = kv_row_pad(spec);
  const std::int64_t row = spec.head_size + pad;
  switch (spec.format) {
    case KVCacheFormat::kKVFirst:
      return {{2, spec.num_blocks, spec.block_size, spec.num_kv_heads, row}, 5};
    case KVCacheFormat::kBlockFirst:
      return {{spec.num_blocks, 2, spec.block_size, spec.num_kv_heads, row}, 5};
    case KVCacheFormat::kPackedKV:
      return {{spec.num_blocks, spec.block_size, spec.num_kv_heads, row + kv_head_size_v(spec) + pad}, 4};
    case KVCacheFormat::kDifferential:
      return {{2, 2, spec.num_blocks, spec.block_size, spec.num_kv_heads / 2, row}, 6};
  }
  return {};
}

// Environment variables that may name the layout, the first that is set wins.
constexpr std::array<const char*, 2> kLayoutVariables{"QUIRE_KV_CACHE_LAYOUT", "VLLM_KV_CACHE_LAYOUT"};

}  // namespace

std::string_view kv_cache_dtype_name(KVCacheDType dtype) {
  switch (dtype) {
    case KVCacheDType::kAuto:
      return "auto";
    case KVCacheDType::kFloat32:
      return "float32";
    case KVCacheDType::kFloat16:
      return "float16";
    case KVCacheDType::kBFloat16:
      return "bfloat16";
    case KVCacheDType::kFp8E4M3:
      return "fp8_e4m3";
    case KVCacheDType::kFp8E5M2:
      return "fp8_e5m2";
    case KVCacheDType::kInt8PerTokenHead:
      return "int8_per_token_head";
    case KVCacheDType::kFp8PerTokenHead:
      return "fp8_per_token_head";
  }
  return "unknown";
}

std::span<const KVCacheDType> all_kv_cache_dtypes() { return kCacheDTypes; }

Result<KVCacheDType> parse_kv_cache_dtype(std::string_view name) {
  if (name == "fp8") return KVCacheDType::kFp8E4M3;
  std::string known;
  for (KVCacheDType dtype : kCacheDTypes) {
    if (name == kv_cache_dtype_name(dtype)) return dtype;
    known += std::string(kv_cache_dtype_name(dtype)) + ", ";
  }
  return invalid_argument("kv_cache_dtype: want one of " + known + "fp8, got '" + std::string(name) + "'");
}

DType kv_storage_dtype(KVCacheDType dtype, DType model_dtype) {
  switch (dtype) {
    case KVCacheDType::kAuto:
      return model_dtype;
    case KVCacheDType::kFloat32:
      return DType::kFloat32;
    case KVCacheDType::kFloat16:
      return DType::kFloat16;
    case KVCacheDType::kBFloat16:
      return DType::kBFloat16;
    case KVCacheDType::kFp8E4M3:
    case KVCacheDType::kFp8PerTokenHead:
      return DType::kFloat8E4M3;
    case KVCacheDType::kFp8E5M2:
      return DType::kFloat8E5M2;
    case KVCacheDType::kInt8PerTokenHead:
      return DType::kInt8;
  }
  return model_dtype;
}

bool is_per_token_head(KVCacheDType dtype) {
  return dtype == KVCacheDType::kInt8PerTokenHead || dtype == KVCacheDType::kFp8PerTokenHead;
}

bool is_quantized(KVCacheDType dtype) {
  return is_per_token_head(dtype) || dtype == KVCacheDType::kFp8E4M3 || dtype == KVCacheDType::kFp8E5M2;
}

std::string_view kv_cache_layout_name(KVCacheLayout layout) { return layout == KVCacheLayout::kHND ? "HND" : "NHD"; }

Result<KVCacheLayout> parse_kv_cache_layout(std::string_view name) {
  if (name == "NHD") return KVCacheLayout::kNHD;
  if (name == "HND") return KVCacheLayout::kHND;
  return invalid_argument("kv_cache_layout: want NHD or HND, got '" + std::string(name) + "'");
}

Result<KVCacheLayout> default_kv_cache_layout(KVCacheLayout otherwise) {
  for (const char* variable : kLayoutVariables) {
    const char* value = std::getenv(variable);
    if (value == nullptr || *value == '\0') continue;
    Result<KVCacheLayout> layout = parse_kv_cache_layout(value);
    if (!layout.ok()) return invalid_argument(std::string(variable) + ": want NHD or HND, got '" + value + "'");
    return layout;
  }
  return otherwise;
}

Result<KVShape> kv_shape(const KVCacheSpec& spec) {
  QUIRE_RETURN_IF_ERROR(check_sizes(spec));
  QUIRE_RETURN_IF_ERROR(check_format(spec));
  const KVShape shape = logical_shape(spec);
  // One eighth of the address range leaves room for strides in bytes and for bit counts.
  std::int64_t elements = 1;
  for (const std::int64_t size : shape.view()) {
    const auto product = checked_mul(elements, size);
    if (!product || *product > std::numeric_limits<std::int64_t>::max() / 8) {
      return resource_exhausted("spec: want a cache below 2^60 elements, got " + std::to_string(spec.num_blocks) +
                                " blocks of " + std::to_string(spec.block_size) + " tokens, " +
                                std::to_string(spec.num_kv_heads) + " heads and head size " +
                                std::to_string(spec.head_size));
    }
    elements = *product;
  }
  return shape;
}

Result<std::vector<std::int64_t>> kv_cache_shape(const KVCacheSpec& spec) {
  QUIRE_ASSIGN_OR_RETURN(const KVShape shape, kv_shape(spec));
  return std::vector<std::int64_t>(shape.view().begin(), shape.view().end());
}

Result<std::vector<int>> kv_cache_stride_order(KVCacheFormat format, KVCacheLayout layout, bool include_num_layers) {
  const bool heads_first = layout == KVCacheLayout::kHND;
  switch (format) {
    case KVCacheFormat::kBlockFirst:
      if (include_num_layers) {
        return heads_first ? std::vector<int>{1, 2, 4, 0, 3, 5} : std::vector<int>{1, 0, 2, 3, 4, 5};
      }
      return heads_first ? std::vector<int>{0, 1, 3, 2, 4} : std::vector<int>{0, 1, 2, 3, 4};
    case KVCacheFormat::kPackedKV:
      if (include_num_layers) return heads_first ? std::vector<int>{1, 3, 0, 2, 4} : std::vector<int>{1, 0, 2, 3, 4};
      return heads_first ? std::vector<int>{0, 2, 1, 3} : std::vector<int>{0, 1, 2, 3};
    case KVCacheFormat::kKVFirst:
    case KVCacheFormat::kDifferential:
      break;
  }
  if (heads_first) {
    return unsupported("kv_cache_layout: want NHD for the cache formats kKVFirst and kDifferential, got HND");
  }
  const int rank = (format == KVCacheFormat::kKVFirst ? 5 : 6) + (include_num_layers ? 1 : 0);
  std::vector<int> order(static_cast<std::size_t>(rank));
  for (int dim = 0; dim < rank; ++dim) order[static_cast<std::size_t>(dim)] = dim;
  return order;
}

Result<std::int64_t> kv_block_bytes(const KVCacheSpec& spec) {
  QUIRE_ASSIGN_OR_RETURN(const std::int64_t bytes, kv_cache_bytes(spec));
  return bytes / spec.num_blocks;
}

Result<std::int64_t> kv_cache_bytes(const KVCacheSpec& spec) {
  QUIRE_ASSIGN_OR_RETURN(const std::vector<std::int64_t> shape, kv_cache_shape(spec));
  std::int64_t bytes = dtype_bytes(kv_storage_dtype(spec.cache_dtype, spec.model_dtype));
  for (std::int64_t size : shape) {
    const auto product = checked_mul(bytes, size);
    if (!product) return resource_exhausted("spec: want a cache below 2^63 bytes, got more");
    bytes = *product;
  }
  return bytes;
}

}  // namespace quire
