// CacheImage: finding, copying and comparing the rows of a KV cache.
#include "cli/replay/cache_image.h"

#include <cstdlib>
#include <cstring>
#include <optional>
#include <utility>

namespace quire::cli {
namespace {

constexpr std::int64_t kScaleBytes = 4;

// Elements of a part's row, without its scale.
std::int64_t row_elements(const KVCacheSpec& spec, CachePart part) {
  return part == CachePart::kValue && spec.head_size_v > 0 ? spec.head_size_v : spec.head_size;
}

bool has_row_scales(const KVCacheSpec& spec) { return is_per_token_head(spec.cache_dtype); }

Result<std::unique_ptr<GuardedBuffer>> make_scales(const KVCacheSpec& spec, TensorView& view) {
  const std::int64_t count = spec.num_blocks * spec.block_size * spec.num_kv_heads;
  auto buffer = std::make_unique<GuardedBuffer>(static_cast<std::size_t>(count * kScaleBytes));
  if (!buffer->ok()) return resource_exhausted("scales: no memory for " + std::to_string(count) + " floats");
  QUIRE_ASSIGN_OR_RETURN(
      view, make_tensor(buffer->data(), DType::kFloat32, {spec.num_blocks, spec.block_size, spec.num_kv_heads}));
  return buffer;
}

std::string describe(const CacheIndex& index) {
  return std::string(index.part == CachePart::kKey ? "key" : "value") + " of slot " + std::to_string(index.slot) +
         ", kv_head " + std::to_string(index.kv_head);
}

std::string row_difference(const CacheRow& want, const CacheRow& got, int slack) {
  for (std::int64_t i = 0; i < want.bytes; ++i) {
    const auto a = static_cast<std::int8_t>(want.data[i]);
    const auto b = static_cast<std::int8_t>(got.data[i]);
    if (std::abs(a - b) <= slack) continue;
    return "byte " + std::to_string(i) + ": want " + std::to_string(a) + ", got " + std::to_string(b);
  }
  if (want.scale != nullptr && std::memcmp(want.scale, got.scale, kScaleBytes) != 0) {
    float a = 0;
    float b = 0;
    std::memcpy(&a, want.scale, kScaleBytes);
    std::memcpy(&b, got.scale, kScaleBytes);
    return "scale: want " + std::to_string(a) + ", got " + std::to_string(b);
  }
  return {};
}

}  // namespace

CacheRow find_cache_row(const KVCacheSpec& spec, const TensorView& view, const KVScales& scales,
                        const CacheIndex& index) {
  const int part = index.part == CachePart::kKey ? 0 : 1;
  const std::int64_t block = index.slot / spec.block_size;
  const std::int64_t offset = index.slot % spec.block_size;
  const bool inline_scale = has_row_scales(spec) && spec.scales == ScalePlacement::kInline;
  const std::int64_t elements = row_elements(spec, index.part);
  TensorView row = view;
  std::int64_t first = 0;
  std::int64_t head = index.kv_head;
  switch (spec.format) {
    case KVCacheFormat::kKVFirst:
      row = select(select(view, 0, part), 0, block);
      break;
    case KVCacheFormat::kBlockFirst:
      row = select(select(view, 0, block), 0, part);
      break;
    case KVCacheFormat::kPackedKV:
      row = select(view, 0, block);
      if (part == 1) first = row_elements(spec, CachePart::kKey) + (inline_scale ? kScaleBytes : 0);
      break;
    case KVCacheFormat::kDifferential:
      row = select(select(select(view, 0, head % 2), 0, part), 0, block);
      head /= 2;
      break;
  }
  row = select(select(row, 0, offset), 0, head);
  const std::int64_t element_bytes = dtype_bytes(row.dtype);
  CacheRow out{.data = row.as<std::byte>() + first * element_bytes, .bytes = elements * element_bytes};
  if (inline_scale) out.scale = out.data + out.bytes;
  const TensorView& separate = part == 0 ? scales.k_scale_cache : scales.v_scale_cache;
  if (has_row_scales(spec) && !inline_scale) {
    out.scale = select(select(select(separate, 0, block), 0, offset), 0, head).as<std::byte>();
  }
  return out;
}

Result<CacheImage> CacheImage::create(const KVCacheSpec& spec, const KVScales& tensor_scales) {
  QUIRE_ASSIGN_OR_RETURN(const std::int64_t bytes, kv_cache_bytes(spec));
  CacheImage out(spec, bytes);
  if (!out.data_.ok()) return resource_exhausted("kv_cache: no memory for " + std::to_string(bytes) + " bytes");
  QUIRE_ASSIGN_OR_RETURN(out.view_, view_kv_cache(spec, out.data_.data()));
  out.scales_.k_scale = tensor_scales.k_scale;
  out.scales_.v_scale = tensor_scales.v_scale;
  if (has_row_scales(spec) && spec.scales == ScalePlacement::kSeparate) {
    if (spec.format == KVCacheFormat::kDifferential) {
      return unsupported("separate scales: want a cache with one stream, got a differential one");
    }
    QUIRE_ASSIGN_OR_RETURN(out.k_scale_data_, make_scales(spec, out.scales_.k_scale_cache));
    QUIRE_ASSIGN_OR_RETURN(out.v_scale_data_, make_scales(spec, out.scales_.v_scale_cache));
  }
  return out;
}

bool CacheImage::guards_intact() const {
  return data_.guards_intact() && (!k_scale_data_ || k_scale_data_->guards_intact()) &&
         (!v_scale_data_ || v_scale_data_->guards_intact());
}

std::vector<std::span<std::byte>> CacheImage::memory() {
  std::vector<std::span<std::byte>> out = {data_.whole()};
  if (k_scale_data_) out.push_back(k_scale_data_->whole());
  if (v_scale_data_) out.push_back(v_scale_data_->whole());
  return out;
}

void CacheImage::copy_rows(const KVCacheSpec& spec, const TensorView& view, const KVScales& scales) {
  for_each_cache_row(spec_, [&](const CacheIndex& index) {
    const CacheRow from = find_cache_row(spec, view, scales, index);
    const CacheRow to = row(index);
    std::memcpy(to.data, from.data, static_cast<std::size_t>(to.bytes));
    if (to.scale != nullptr) std::memcpy(to.scale, from.scale, kScaleBytes);
  });
}

void CacheImage::copy_from(const KVCacheSpec& spec, const TensorView& view) { copy_rows(spec, view, {}); }
void CacheImage::copy_from(const CacheImage& other) { copy_rows(other.spec_, other.view_, other.scales_); }

std::string first_cache_difference(const CacheImage& want, const CacheImage& got, int int8_slack) {
  const int slack = want.spec().cache_dtype == KVCacheDType::kInt8PerTokenHead ? int8_slack : 0;
  std::string found;
  for_each_cache_row(want.spec(), [&](const CacheIndex& index) {
    if (!found.empty()) return;
    const std::string difference = row_difference(want.row(index), got.row(index), slack);
    if (!difference.empty()) found = describe(index) + ": " + difference;
  });
  return found;
}

}  // namespace quire::cli
