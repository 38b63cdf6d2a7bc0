// The paged KV cache: dtypes, formats, layouts, shapes and stride orders, and the operations that fill and move blocks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "quire/attention.h"
#include "quire/status.h"
#include "quire/tensor.h"

namespace quire {

// How elements are stored. kAuto: as the model's dtype. Per-tensor fp8 uses the layer's k_scale and v_scale; the
// per-token-head forms keep one float32 scale for each (slot, kv_head) of K and of V.
enum class KVCacheDType : std::uint8_t {
  kAuto,
  kFloat32,
  kFloat16,
  kBFloat16,
  kFp8E4M3,  // "fp8" and "fp8_e4m3"
  kFp8E5M2,
  kInt8PerTokenHead,
  kFp8PerTokenHead,  // e4m3
};

// "auto", "float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2", "int8_per_token_head", "fp8_per_token_head".
std::string_view kv_cache_dtype_name(KVCacheDType dtype);
// Also takes "fp8"; an unknown name is an error that lists the valid ones.
Result<KVCacheDType> parse_kv_cache_dtype(std::string_view name);
std::span<const KVCacheDType> all_kv_cache_dtypes();
// The element type in memory of a cache of a model of `model_dtype`.
DType kv_storage_dtype(KVCacheDType dtype, DType model_dtype);
bool is_per_token_head(KVCacheDType dtype);
bool is_quantized(KVCacheDType dtype);

// Physical order inside a block: tokens before heads, or heads before tokens. The logical shape is the same.
enum class KVCacheLayout : std::uint8_t { kNHD, kHND };
std::string_view kv_cache_layout_name(KVCacheLayout layout);
Result<KVCacheLayout> parse_kv_cache_layout(std::string_view name);
// The layout that QUIRE_KV_CACHE_LAYOUT names (VLLM_KV_CACHE_LAYOUT is honoured too), else `otherwise`; a wrong name is
// an error.
Result<KVCacheLayout> default_kv_cache_layout(KVCacheLayout otherwise = KVCacheLayout::kNHD);

// The logical shapes of the five backends (B blocks, bs tokens a block, H kv heads, D head size).
enum class KVCacheFormat : std::uint8_t {
  kKVFirst,       // [2, B, bs, H, D]           TREE_ATTN, XFORMERS
  kBlockFirst,    // [B, 2, bs, H, D (+ pad)]   TRITON_ATTN
  kPackedKV,      // [B, bs, H, Dqk + Dv]       TRITON_ATTN_DIFFKV; with inline scales a row is K, scale, V, scale
  kDifferential,  // [2, 2, B, bs, H / 2, D]    DIFFERENTIAL_FLASH_ATTN: [stream, K or V, ...]
};

// Where the scales of the per-token-head forms are: behind each vector (4 bytes, so D % 4 == 0), or in tensors of their
// own.
enum class ScalePlacement : std::uint8_t { kInline, kSeparate };

struct KVCacheSpec {
  KVCacheFormat format = KVCacheFormat::kBlockFirst;
  KVCacheLayout layout = KVCacheLayout::kNHD;
  KVCacheDType cache_dtype = KVCacheDType::kAuto;
  DType model_dtype = DType::kBFloat16;
  ScalePlacement scales = ScalePlacement::kInline;
  std::int64_t num_blocks = 0;
  std::int32_t block_size = 16;
  std::int32_t num_kv_heads = 0;
  std::int32_t head_size = 0;
  std::int32_t head_size_v = 0;  // 0: head_size
};

// The logical shape. Errors: sizes <= 0, odd num_kv_heads of a differential cache, head sizes that inline scales cannot
// follow aligned, overflow. block_size may be any size >= 1 here; a backend's kv_cache_shape insists on its multiple.
Result<std::vector<std::int64_t>> kv_cache_shape(const KVCacheSpec& spec);
// The permutation from logical to physical order; with layers the logical shape has num_layers prepended.
// kUnsupported where the reference defines none (kKVFirst and kDifferential in HND).
Result<std::vector<int>> kv_cache_stride_order(KVCacheFormat format, KVCacheLayout layout, bool include_num_layers);
// Bytes of one layer's cache, and of one block of it (K and V, all heads, inline scales included).
Result<std::int64_t> kv_cache_bytes(const KVCacheSpec& spec);
Result<std::int64_t> kv_block_bytes(const KVCacheSpec& spec);

// The logical view of one layer's cache at `data` with the strides of the spec's layout. `data` holds at least
// kv_cache_bytes(spec) bytes, aligned to 4.
Result<TensorView> view_kv_cache(const KVCacheSpec& spec, void* data, Device device = {});
// The same for layer `layer` of a buffer that holds `num_layers` layers in the layered stride order.
struct LayeredCache {
  void* data = nullptr;
  std::int32_t num_layers = 1;
  std::int32_t layer = 0;
  Device device = {};
};
Result<TensorView> view_layered_kv_cache(const KVCacheSpec& spec, const LayeredCache& cache);

// What else a cache needs to be read or written: per-tensor scales, or separate scale tensors float32 [B, bs, H]
// (differential: [2, B, bs, H / 2]) of any strides.
struct KVScales {
  float k_scale = 1.0f;
  float v_scale = 1.0f;
  TensorView k_scale_cache = {};
  TensorView v_scale_cache = {};
};
// Pointers and strides of a cache (any strides; the logical shape must match the spec). The block table is left null.
Result<KVSource> bind_kv_cache(const KVCacheSpec& spec, const TensorView& cache, const KVScales& scales);
// Sets every per-token-head scale of the cache to 1.0, as a fresh cache wants; a no-op for other dtypes.
Status reset_kv_scales(const KVSource& cache);

enum class RopeStyle : std::uint8_t { kNeox, kGptj };

// Rotation before the store: query and key rows are rotated in place over their first `rotary_dim` elements.
struct RopeArgs {
  TensorView query = {};      // [num_tokens or more, num_q_heads, head_size], rotated in place; may be empty
  TensorView positions = {};  // [num_tokens] int64 or int32
  // [max_position, rotary_dim], float32 or key's dtype: cosines in the first half of a row, sines in the second.
  TensorView cos_sin_cache = {};
  RopeStyle style = RopeStyle::kNeox;
};

// Stores the rows of key [num_tokens, num_kv_heads, head_size] and value [num_tokens, num_kv_heads, head_size_v] (last
// dimension contiguous) at slot_mapping [num_slots] int64; num_slots <= num_tokens, slot = block * block_size + offset,
// a negative slot stores nothing, and of tokens with one slot the last one stays. In a differential cache, whose keys
// and values come with the heads of both streams, head 2p + s goes to stream s, head p. Unquantised caches round to the
// cache's dtype. Per-tensor fp8: x / scale rounded and saturated; rows that are of the cache's fp8 dtype already are
// stored unchanged. Per token and head: docs/semantics.md 3.2 with rounding to nearest even; a NaN does not take part
// in its row's scale. Errors, before anything is written: shapes, dtypes, devices, a slot >= num_blocks * block_size.
// Memory on a device other than the CPU is unsupported.
Status reshape_and_cache_flash(const TensorView& key, const TensorView& value, const KVSource& cache,
                               const TensorView& slot_mapping);
// The same after rotating query and key in place, in float32 and rounded to their dtype once. All query rows that have
// a position are rotated; a key row only if it has a position and its slot is >= 0 (rows beyond positions are stored as
// they are). The result is bit for bit that of rotating first and storing then. More errors: a position outside
// [0, max_position), an odd rotary_dim or one above head_size, rows of query or key that overlap.
Status rope_and_cache_flash(const RopeArgs& rope, const TensorView& key, const TensorView& value, const KVSource& cache,
                            const TensorView& slot_mapping);

// A pair of block ids for swap_blocks and copy_blocks.
struct BlockPair {
  std::int64_t source = 0;
  std::int64_t destination = 0;
};
// Copies whole blocks (every stream, K, V and scales) from one cache to another. The caches may differ in layout and
// number of blocks. Errors: other differences, one cache given twice, ids out of range, two pairs with one destination.
Status swap_blocks(const KVSource& source, const KVSource& destination, std::span<const BlockPair> pairs);
// Copies blocks inside each of the caches (one a layer). All pairs read the state before the call: a block may be a
// source and a destination. Errors: ids out of range, two pairs with one destination.
Status copy_blocks(std::span<const KVSource> caches, std::span<const BlockPair> pairs);

// A pair of slots for move_tokens.
struct SlotPair {
  std::int64_t source = 0;
  std::int64_t destination = 0;
};
// Copies single tokens (K, V and scales of all kv_heads) inside each of the caches, as speculative decoding needs to
// close the gaps that rejected drafts leave. Pairs are copied in order: a destination may be a later pair's source only
// if that pair should see the new token. Errors: a slot out of range (nothing is copied then), a cache on a device.
Status move_tokens(std::span<const KVSource> caches, std::span<const SlotPair> pairs);

}  // namespace quire
