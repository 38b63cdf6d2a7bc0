// The backends: what each supports, its cache, its metadata builder and its implementation; the registry and the
// selector.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "quire/kv_cache.h"
#include "quire/metadata.h"
#include "quire/runtime.h"
#include "quire/status.h"
#include "quire/tensor.h"
#include "quire/variant.h"

namespace quire {

enum class AttentionType : std::uint8_t { kDecoder, kEncoder, kEncoderOnly, kEncoderDecoder };
std::string_view attention_type_name(AttentionType type);  // "decoder", "encoder", "encoder_only", "encoder_decoder"
Result<AttentionType> parse_attention_type(std::string_view name);

enum class CudagraphSupport : std::uint8_t {
  kNever = 0,
  kUniformSingleTokenDecode = 1,
  kUniformBatch = 2,
  kAlways = 3
};

struct ComputeCapability {
  int major = 0;
  int minor = 0;
};

// One configuration that a model asks for; what validate_configuration and the selector judge.
struct AttentionConfig {
  std::int32_t head_size = 128;
  std::int32_t head_size_v = 0;  // 0: head_size
  DType dtype = DType::kBFloat16;
  KVCacheDType kv_cache_dtype = KVCacheDType::kAuto;
  std::optional<std::int32_t> block_size;
  bool use_mla = false;
  bool has_sink = false;
  bool use_sparse = false;
  bool use_mm_prefix = false;
  bool use_per_head_quant_scales = false;
  bool use_alibi_sqrt = false;
  bool use_non_causal = false;
  bool use_batch_invariant = false;
  bool use_kv_connector = false;
  bool use_output_quant = false;
  AttentionType attn_type = AttentionType::kDecoder;
  Backplane backplane = Backplane::kCpu;
  ComputeCapability device_capability;  // CUDA only
};

// Lambda and the sub-layer norm of a differential layer (docs/semantics.md 4).
struct DifferentialConfig {
  std::int32_t layer_idx = 0;         // lambda_init = 0.8 - 0.6 * exp(-0.3 * layer_idx)
  std::optional<double> lambda_init;  // overrides layer_idx
  std::span<const float> lambda_q1;   // [head_size] each
  std::span<const float> lambda_k1;
  std::span<const float> lambda_q2;
  std::span<const float> lambda_k2;
  std::span<const float> subln_weight;  // [2 * head_size]
  float subln_eps = 1e-5f;
};

// What a layer is built from. Spans are copied.
struct ImplConfig {
  std::int32_t num_heads = 0;
  std::int32_t head_size = 0;
  std::int32_t head_size_v = 0;  // 0: head_size
  float scale = 1.0f;
  std::int32_t num_kv_heads = 0;
  std::span<const float> alibi_slopes;         // [num_heads], empty: none
  AlibiKind alibi = AlibiKind::kLinear;        // used when alibi_slopes is given; kSqrt is vLLM's use_alibi_sqrt
  std::optional<std::int32_t> sliding_window;  // w >= 1: causal rows see (w - 1, 0), others (w - 1, w - 1)
  std::int32_t chunk = 0;                      // > 0: chunked local attention
  std::int32_t chunk_lookback = 0;
  KVCacheDType kv_cache_dtype = KVCacheDType::kAuto;
  std::optional<float> logits_soft_cap;
  AttentionType attn_type = AttentionType::kDecoder;
  std::optional<std::string> kv_sharing_target_layer_name;
  std::span<const float> sinks;  // [num_heads], empty: none
  std::optional<DifferentialConfig> differential;
  DType dtype = DType::kBFloat16;  // of queries, keys and values
  KVCacheLayout layout = KVCacheLayout::kNHD;
  ScalePlacement scale_placement = ScalePlacement::kInline;
  std::int32_t block_size = 16;
  Runtime runtime;
};

// Scales that a layer carries; separate per-token-head scale caches where the cache keeps them apart.
struct AttentionLayer {
  float q_scale = 1.0f;
  KVScales kv_scales;
};

// How outputs are quantised, as far as it changes the scratch that attention needs.
enum class OutputScales : std::uint8_t { kNoneOrOne, kBlocks };

// Attention of one layer. All tensors are on the runtime's device.
struct ForwardArgs {
  TensorView query;  // [num_tokens, num_heads, head_size] dtype, or float8_e4m3 with layer.q_scale; rows may be strided
  TensorView key;    // [num_tokens, num_kv_heads, head_size] new keys; used by encoder attention, else may be empty
  TensorView value;  // [num_tokens, num_kv_heads, head_size_v]
  TensorView kv_cache;                          // the backend's logical shape; empty for encoder attention
  const AttentionMetadata* metadata = nullptr;  // null: a profiling run, output is set to 0
  TensorView output;  // [num_tokens, num_heads, head_size_v] dtype or float32; only the actual tokens are written
  std::optional<float> output_scale;  // output is float8_e4m3, one scale
  TensorView output_block_scale;   // output is float8_e4m3; float32 [num_tokens, ceil(num_heads * head_size_v / 128)]
  TensorView lse;                  // optional float32 [num_heads, num_tokens]
  std::span<std::byte> workspace;  // workspace_bytes() of scratch, 64-byte aligned
};

class AttentionImpl {
 public:
  virtual ~AttentionImpl() = default;
  // Stores the new keys and values; a no-op when the layer shares another's cache.
  virtual Status do_kv_cache_update(const AttentionLayer& layer, const TensorView& key, const TensorView& value,
                                    const TensorView& kv_cache, const TensorView& slot_mapping) const = 0;
  // The same after rotating query and key in place. A layer that shares another's cache has its queries rotated only;
  // encoder attention, which stores nothing, is unsupported.
  virtual Status do_rope_and_kv_cache_update(const AttentionLayer& layer, const RopeArgs& rope, const TensorView& key,
                                             const TensorView& value, const TensorView& kv_cache,
                                             const TensorView& slot_mapping) const = 0;
  // Scratch that forward needs for this batch, whatever the dtypes of its queries and outputs.
  virtual std::size_t workspace_bytes(const AttentionMetadata& metadata,
                                      OutputScales scales = OutputScales::kNoneOrOne) const = 0;
  // Attention over the cache (the update came before); never allocates, locks or synchronises.
  virtual Status forward(const AttentionLayer& layer, const ForwardArgs& args) const = 0;
};

// What a builder is built from: the layers' shapes, the terms that bound their keys and the backend's own settings.
struct BuilderConfig {
  std::int32_t num_heads = 0;
  std::int32_t num_kv_heads = 0;
  std::int32_t head_size = 0;
  std::int32_t head_size_v = 0;
  std::int32_t block_size = 16;
  std::int64_t num_blocks = 0;
  std::optional<std::int32_t> sliding_window;
  std::int32_t chunk = 0;
  std::int32_t chunk_lookback = 0;
  AttentionType attn_type = AttentionType::kDecoder;
  std::optional<TokenTree> tree;            // TREE_ATTN: the tree of requests whose query_len is its size
  std::int32_t num_speculative_tokens = 0;  // decode threshold is 1 + this: DIFFKV, and TREE_ATTN without a tree
  Runtime runtime;
};

class AttentionMetadataBuilder {
 public:
  virtual ~AttentionMetadataBuilder() = default;
  virtual Result<AttentionMetadata> build(std::int32_t common_prefix_len, const CommonAttentionMetadata& common) = 0;
  // Metadata of drafting level `draft_index` (0: the root level, plain causal).
  virtual Result<AttentionMetadata> build_for_drafting(const CommonAttentionMetadata& common, std::int32_t draft_index);
  // Metadata to capture a graph with: shapes as given, lengths as short as possible.
  virtual Result<AttentionMetadata> build_for_cudagraph_capture(const CommonAttentionMetadata& common);
  // Before a replay of a graph that was captured with `captured`: puts what builders copy of a batch (trees, mm-prefix
  // ranges, causal flags, lengths that the caller does not keep on the device) in the place of the captured batch's, in
  // the order of the builder's stream. Trees may be any of up to max_query_len nodes if the backend has them; ranges
  // and flags change where the capture had some, up to as many a request. Errors name what the capture has no room for,
  // and then nothing changes. kUnsupported by default.
  virtual Status update_for_cudagraph_replay(const AttentionMetadata& captured, const CommonAttentionMetadata& common);
  // The swaps that bring the batch into the order that build expects; empty where the backend takes any order.
  virtual std::vector<std::pair<std::int32_t, std::int32_t>> reorder_batch(const ReorderInput& input) const;
  // Requests of at most this many tokens count as decodes; 0: the backend does not split.
  virtual std::int32_t reorder_batch_threshold() const = 0;
};

class AttentionBackend {
 public:
  virtual ~AttentionBackend() = default;
  virtual std::string_view name() const = 0;
  // One sentence on what the backend is for.
  virtual std::string_view summary() const { return {}; }
  // Names of what it takes beyond the predicates: "softcap", "KV sharing" ...
  virtual std::span<const std::string_view> features() const { return {}; }
  // What users should know beside, one sentence each.
  virtual std::span<const std::string_view> notes() const { return {}; }
  virtual std::span<const DType> supported_dtypes() const = 0;
  virtual std::span<const KVCacheDType> supported_kv_cache_dtypes() const = 0;
  virtual bool supports_head_size(std::int32_t head_size, std::int32_t head_size_v) const = 0;
  virtual bool supports_block_size(std::int32_t block_size) const = 0;
  virtual std::int32_t block_size_multiple() const = 0;
  std::int32_t preferred_block_size(std::int32_t wanted) const;
  virtual bool supports_attn_type(AttentionType type) const = 0;
  virtual bool supports_sink() const = 0;
  virtual bool supports_mm_prefix() const = 0;
  virtual bool supports_alibi_sqrt() const = 0;
  virtual bool supports_non_causal() const = 0;
  virtual bool supports_output_quant() const = 0;
  virtual bool supports_batch_invariance() const { return true; }
  virtual bool supports_kv_connector() const { return true; }
  // Whether the selector may pick the backend without being told its name.
  virtual bool is_automatic() const { return true; }
  virtual bool supports_backplane(Backplane backplane) const = 0;
  virtual bool supports_compute_capability(ComputeCapability capability) const = 0;
  virtual CudagraphSupport cudagraph_support() const = 0;
  virtual KVCacheFormat kv_cache_format() const = 0;
  // The order that the builder wants requests in, and its decode threshold, in words.
  virtual std::string_view batch_order() const { return "any"; }
  // The dimension of the logical cache shape that counts blocks.
  int kv_cache_block_dim() const;
  // Whether blocks of all layers lie together when layers share one buffer, so that a block is one stride of it.
  bool indexes_kv_by_block_stride(KVCacheLayout layout) const;
  // The logical shape; errors as kv_cache_shape, and block sizes that the backend does not take.
  virtual Result<std::vector<std::int64_t>> kv_cache_shape(const KVCacheSpec& spec) const;
  virtual Result<std::vector<int>> kv_cache_stride_order(KVCacheLayout layout, bool include_num_layers) const;
  // Every reason why the configuration cannot run, in a fixed order; empty: it can.
  virtual std::vector<std::string> validate_configuration(const AttentionConfig& config) const;
  virtual Result<std::unique_ptr<AttentionImpl>> make_impl(const ImplConfig& config) const = 0;
  virtual Result<std::unique_ptr<AttentionMetadataBuilder>> make_builder(const BuilderConfig& config) const = 0;
};

// What the device reads fastest of the layouts that the backend has.
KVCacheLayout fastest_kv_cache_layout(const AttentionBackend& backend, Backplane backplane);

// The capability table as data: one row a capability, the same rows in the same order for every backend.
struct Capability {
  std::string_view name;
  std::string value;
};
std::vector<Capability> capability_table(const AttentionBackend& backend);

// All registered backends, the five built-in ones first: TREE_ATTN, XFORMERS, TRITON_ATTN, TRITON_ATTN_DIFFKV,
// DIFFERENTIAL_FLASH_ATTN.
std::vector<const AttentionBackend*> registered_backends();
// An unknown name is an error that lists the valid ones. "XFORMERS_VLLM_V1" is XFORMERS.
Result<const AttentionBackend*> find_backend(std::string_view name);
// Adds a backend or replaces the one of the same name. Thread-safe; the registry keeps it alive, replaced ones too.
Status register_backend(std::unique_ptr<AttentionBackend> backend);

// Why a backend was taken or passed over.
struct BackendVerdict {
  const AttentionBackend* backend = nullptr;
  std::vector<std::string> reasons;  // empty: it can run the configuration
};
struct BackendSelection {
  const AttentionBackend* backend = nullptr;
  std::vector<BackendVerdict> verdicts;  // of every registered backend
};
// The backend that `name` names, or (empty name) the first of the automatic order that can run the configuration:
// TRITON_ATTN, TRITON_ATTN_DIFFKV, XFORMERS, TREE_ATTN, then users' own as registered. DIFFERENTIAL_FLASH_ATTN computes
// another function and is taken by name only. An error carries every reason of the named backend, or of all of them.
Result<BackendSelection> select_backend(const AttentionConfig& config, std::string_view name = {});

}  // namespace quire
