// A cache in guarded memory and a naive account of where every vector and scale of it must be.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "core/convert.h"
#include "quire/kv_cache.h"

namespace quire::kv_test {

// Memory with a pattern on both sides that must survive.
class GuardedBuffer {
 public:
  explicit GuardedBuffer(std::size_t bytes, unsigned char fill = 0) : memory_(bytes + 2 * kGuard, kPattern) {
    std::memset(data(), fill, bytes);
  }
  unsigned char* data() { return memory_.data() + kGuard; }
  std::vector<unsigned char> bytes() const { return {memory_.begin() + kGuard, memory_.end() - kGuard}; }
  bool guards_intact() const {
    for (std::size_t i = 0; i < kGuard; ++i) {
      if (memory_[i] != kPattern || memory_[memory_.size() - 1 - i] != kPattern) return false;
    }
    return true;
  }

 private:
  static constexpr std::size_t kGuard = 256;
  static constexpr unsigned char kPattern = 0xa5;
  std::vector<unsigned char> memory_;
};

inline void store_float(unsigned char* at, float value) { std::memcpy(at, &value, sizeof value); }

// [num_rows, num_heads, size] in guarded memory, with gaps between tokens and between heads.
class Rows {
 public:
  Rows(DType dtype, std::int64_t num_rows, std::int64_t num_heads, std::int64_t size)
      : dtype_(dtype),
        shape_{num_rows, num_heads, size},
        token_stride_(num_heads * (size + 4) + 8),
        buffer_(static_cast<std::size_t>(num_rows * token_stride_ * dtype_bytes(dtype)), 0x11) {}

  TensorView view() {
    TensorView view{.data = buffer_.data(), .dtype = dtype_, .rank = 3};
    view.shape = {shape_[0], shape_[1], shape_[2]};
    view.strides = {token_stride_, shape_[2] + 4, 1};
    return view;
  }
  std::int64_t index(std::int64_t token, std::int64_t head, std::int64_t d) const {
    return token * token_stride_ + head * (shape_[2] + 4) + d;
  }
  float get(std::int64_t token, std::int64_t head, std::int64_t d) {
    return load_as_float(buffer_.data(), dtype_, index(token, head, d));
  }
  void set(std::int64_t token, std::int64_t head, std::int64_t d, float value) {
    store_from_float(buffer_.data(), dtype_, index(token, head, d), value);
  }
  void fill(std::mt19937& random) {
    std::normal_distribution<float> normal(0.0f, 3.0f);
    for (std::int64_t token = 0; token < shape_[0]; ++token) {
      for (std::int64_t head = 0; head < shape_[1]; ++head) {
        for (std::int64_t d = 0; d < shape_[2]; ++d) set(token, head, d, normal(random));
      }
    }
  }
  const GuardedBuffer& buffer() const { return buffer_; }

 private:
  DType dtype_;
  std::int64_t shape_[3];
  std::int64_t token_stride_;
  GuardedBuffer buffer_;
};

// One cache to test: a spec, and whether it is one layer of a buffer of three.
struct CacheCase {
  KVCacheSpec spec;
  bool layered = false;

  std::string name() const {
    static constexpr const char* kFormats[] = {"kv_first", "block_first", "packed", "differential"};
    return std::string(kFormats[static_cast<int>(spec.format)]) + " " + std::string(kv_cache_layout_name(spec.layout)) +
           (layered ? " layered " : " ") + std::string(kv_cache_dtype_name(spec.cache_dtype)) +
           (spec.scales == ScalePlacement::kSeparate ? " separate " : " ") + std::string(dtype_name(spec.model_dtype));
  }
};

// Where a vector is, by format and not by layout.
struct Place {
  int kv = 0;
  std::int64_t head = 0;  // of the model
  std::int64_t block = 0;
  std::int64_t offset = 0;
};

class CacheModel {
 public:
  static constexpr std::int32_t kLayers = 3;
  static constexpr std::int32_t kLayer = 1;

  explicit CacheModel(const CacheCase& test)
      : test_(test),
        cache_(static_cast<std::size_t>(*kv_cache_bytes(test.spec) * (test.layered ? kLayers : 1)), 0x22),
        k_scales_(num_scales() * 4, 0x33),
        v_scales_(num_scales() * 4, 0x33) {}

  const KVCacheSpec& spec() const { return test_.spec; }
  bool row_scaled() const { return is_per_token_head(spec().cache_dtype); }
  bool inline_scales() const { return row_scaled() && spec().scales == ScalePlacement::kInline; }
  bool separate_scales() const { return row_scaled() && spec().scales == ScalePlacement::kSeparate; }
  std::int64_t element_bytes() const { return dtype_bytes(kv_storage_dtype(spec().cache_dtype, spec().model_dtype)); }
  std::int64_t size_of(int kv) const {
    return kv == 1 && spec().head_size_v > 0 ? spec().head_size_v : spec().head_size;
  }

  Result<KVSource> bind(float k_scale = 1.0f, float v_scale = 1.0f) {
    const TensorView view =
        test_.layered ? *view_layered_kv_cache(spec(), {.data = cache_.data(), .num_layers = kLayers, .layer = kLayer})
                      : *view_kv_cache(spec(), cache_.data());
    KVScales scales{.k_scale = k_scale, .v_scale = v_scale};
    if (separate_scales()) {
      scales.k_scale_cache = scale_view(k_scales_);
      scales.v_scale_cache = scale_view(v_scales_);
    }
    return bind_kv_cache(spec(), view, scales);
  }

  // Byte offset of the vector in the buffer, from the layout's order written out as nested sizes.
  std::int64_t vector_offset(const Place& place) const;
  // Index into the separate scales.
  std::int64_t scale_index(const Place& place) const;

  GuardedBuffer& cache() { return cache_; }
  GuardedBuffer& scales(int kv) { return kv == 0 ? k_scales_ : v_scales_; }
  bool guards_intact() const {
    return cache_.guards_intact() && k_scales_.guards_intact() && v_scales_.guards_intact();
  }

 private:
  std::size_t num_scales() const {
    return separate_scales() ? static_cast<std::size_t>(spec().num_blocks * spec().block_size * spec().num_kv_heads)
                             : 0;
  }
  // The separate scales lie [.., B, H, bs] in memory, so that their strides are not the cache's.
  TensorView scale_view(GuardedBuffer& buffer) {
    const bool differential = spec().format == KVCacheFormat::kDifferential;
    const std::int64_t heads = spec().num_kv_heads / (differential ? 2 : 1);
    TensorView view = *make_tensor(buffer.data(), DType::kFloat32,
                                   {differential ? 2 : 1, spec().num_blocks, heads, spec().block_size});
    view = permute(view, {0, 1, 3, 2});
    return differential ? view : select(view, 0, 0);
  }

  CacheCase test_;
  GuardedBuffer cache_;
  GuardedBuffer k_scales_;
  GuardedBuffer v_scales_;
};

inline std::int64_t CacheModel::vector_offset(const Place& place) const {
  const std::int64_t pad = inline_scales() ? 4 : 0;
  const std::int64_t row = spec().head_size + pad;
  const std::int64_t tokens = spec().block_size;
  const std::int64_t blocks = spec().num_blocks;
  const bool heads_first = spec().layout == KVCacheLayout::kHND;
  const std::int64_t layers = test_.layered ? kLayers : 1;
  const std::int64_t layer = test_.layered ? kLayer : 0;
  std::int64_t heads = spec().num_kv_heads;
  std::int64_t row_index = 0;
  std::int64_t row_size = row;
  std::int64_t offset = 0;
  switch (spec().format) {
    case KVCacheFormat::kKVFirst:  // layers, 2, blocks, tokens, heads
      row_index = (((layer * 2 + place.kv) * blocks + place.block) * tokens + place.offset) * heads + place.head;
      break;
    case KVCacheFormat::kBlockFirst:
      row_index = heads_first  // blocks, 2, heads, layers, tokens
                      ? (((place.block * 2 + place.kv) * heads + place.head) * layers + layer) * tokens + place.offset
                      : (((place.block * layers + layer) * 2 + place.kv) * tokens + place.offset) * heads + place.head;
      break;
    case KVCacheFormat::kPackedKV:
      row_size = row + size_of(1) + pad;
      offset = place.kv == 1 ? row : 0;
      row_index = heads_first ? ((place.block * heads + place.head) * layers + layer) * tokens + place.offset
                              : ((place.block * layers + layer) * tokens + place.offset) * heads + place.head;
      break;
    case KVCacheFormat::kDifferential: {  // layers, stream, 2, blocks, tokens, pairs
      heads /= 2;
      const std::int64_t stream = place.head % 2;
      row_index = ((((layer * 2 + stream) * 2 + place.kv) * blocks + place.block) * tokens + place.offset) * heads +
                  place.head / 2;
      break;
    }
  }
  return (row_index * row_size + offset) * element_bytes();
}

inline std::int64_t CacheModel::scale_index(const Place& place) const {
  const bool differential = spec().format == KVCacheFormat::kDifferential;
  const std::int64_t heads = spec().num_kv_heads / (differential ? 2 : 1);
  const std::int64_t stream = differential ? place.head % 2 : 0;
  const std::int64_t head = differential ? place.head / 2 : place.head;
  return ((stream * spec().num_blocks + place.block) * heads + head) * spec().block_size + place.offset;
}

// Every format, layout, codec and place of scales that there is, for a model of `dtype`.
inline std::vector<CacheCase> all_cases(DType dtype) {
  std::vector<CacheCase> cases;
  for (KVCacheFormat format :
       {KVCacheFormat::kKVFirst, KVCacheFormat::kBlockFirst, KVCacheFormat::kPackedKV, KVCacheFormat::kDifferential}) {
    for (KVCacheLayout layout : {KVCacheLayout::kNHD, KVCacheLayout::kHND}) {
      if (!kv_cache_stride_order(format, layout, false).ok()) continue;
      for (KVCacheDType cache_dtype : all_kv_cache_dtypes()) {
        for (ScalePlacement scales : {ScalePlacement::kInline, ScalePlacement::kSeparate}) {
          if (scales == ScalePlacement::kSeparate && !is_per_token_head(cache_dtype)) continue;
          for (bool layered : {false, true}) {
            const KVCacheSpec spec{.format = format,
                                   .layout = layout,
                                   .cache_dtype = cache_dtype,
                                   .model_dtype = dtype,
                                   .scales = scales,
                                   .num_blocks = 5,
                                   .block_size = 3,
                                   .num_kv_heads = 4,
                                   .head_size = 24,
                                   .head_size_v = format == KVCacheFormat::kPackedKV ? 20 : 0};
            cases.push_back({spec, layered});
          }
        }
      }
    }
  }
  return cases;
}

}  // namespace quire::kv_test
