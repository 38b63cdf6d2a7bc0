// CacheImage: a KV cache in guarded memory, whose rows can be found, copied and compared whatever its layout.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cli/replay/guarded_buffer.h"
#include "quire/kv_cache.h"
#include "quire/status.h"

namespace quire::cli {

enum class CachePart : std::uint8_t { kKey, kValue };

// One row of K or V: its elements, and its own scale in caches with a scale per token and head (else null).
struct CacheRow {
  std::byte* data = nullptr;
  std::int64_t bytes = 0;
  std::byte* scale = nullptr;  // a float32, perhaps unaligned
};

// The row of (part, slot, kv_head) in the logical view of a cache; found from the shapes alone, so that it judges the
// library's own addressing. kv_head counts over both streams of a differential cache.
struct CacheIndex {
  CachePart part = CachePart::kKey;
  std::int64_t slot = 0;
  std::int32_t kv_head = 0;
};
CacheRow find_cache_row(const KVCacheSpec& spec, const TensorView& view, const KVScales& scales,
                        const CacheIndex& index);

class CacheImage {
 public:
  // Errors: what kv_cache_bytes and view_kv_cache say; separate scales of a differential cache; no memory.
  static Result<CacheImage> create(const KVCacheSpec& spec, const KVScales& tensor_scales);

  const KVCacheSpec& spec() const { return spec_; }
  const TensorView& view() const { return view_; }
  const KVScales& scales() const { return scales_; }
  CacheRow row(const CacheIndex& index) const { return find_cache_row(spec_, view_, scales_, index); }
  bool guards_intact() const;
  // All memory of the cache and its scales, guards included.
  std::vector<std::span<std::byte>> memory();

  // Takes over every row of another cache of the same sizes; layout and place of the scales may differ.
  void copy_from(const KVCacheSpec& spec, const TensorView& view);
  void copy_from(const CacheImage& other);

 private:
  CacheImage(const KVCacheSpec& spec, std::int64_t bytes) : spec_(spec), data_(static_cast<std::size_t>(bytes)) {}
  void copy_rows(const KVCacheSpec& spec, const TensorView& view, const KVScales& scales);

  KVCacheSpec spec_;
  GuardedBuffer data_;
  std::unique_ptr<GuardedBuffer> k_scale_data_;
  std::unique_ptr<GuardedBuffer> v_scale_data_;
  TensorView view_;
  KVScales scales_;
};

// Calls `visit(index)` for every row of the cache.
template <class Visit>
void for_each_cache_row(const KVCacheSpec& spec, Visit visit) {
  for (const CachePart part : {CachePart::kKey, CachePart::kValue}) {
    for (std::int64_t slot = 0; slot < spec.num_blocks * spec.block_size; ++slot) {
      for (std::int32_t head = 0; head < spec.num_kv_heads; ++head) visit(CacheIndex{part, slot, head});
    }
  }
}

// Where two caches of one spec differ first, for instance "key of slot 37, kv_head 1: byte 5: want 12, got 13"; empty
// if nowhere. `int8_slack` is by how much elements may differ in caches of int8 per token and head.
std::string first_cache_difference(const CacheImage& want, const CacheImage& got, int int8_slack);

}  // namespace quire::cli
