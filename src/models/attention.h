// PagedAttention: all attention layers of a model with their caches, their backend and the metadata of a step.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "models/rope.h"
#include "quire/backend.h"
#include "quire/kv_cache.h"
#include "quire/metadata.h"
#include "quire/status.h"

namespace quire {

struct AttentionOptions {
  std::string backend = {};  // empty: the first that can run the layers
  DType dtype = DType::kFloat32;
  KVCacheDType kv_cache_dtype = KVCacheDType::kAuto;
  std::int32_t block_size = 16;
  Runtime runtime = {};
};

struct DifferentialLayer {
  std::int32_t layer_idx = 0;
  std::vector<float> lambda_q1;
  std::vector<float> lambda_k1;
  std::vector<float> lambda_q2;
  std::vector<float> lambda_k2;
  std::vector<float> subln_weight;
  float subln_eps = 1e-5f;
};

struct AttentionLayerSpec {
  std::int32_t num_heads = 0;
  std::int32_t num_kv_heads = 0;
  std::int32_t head_size = 0;
  std::int32_t head_size_v = 0;  // 0: head_size
  float scale = 1.0f;
  std::optional<std::int32_t> sliding_window = {};
  std::vector<float> alibi_slopes = {};
  std::optional<float> softcap = {};
  std::vector<float> sinks = {};
  std::optional<DifferentialLayer> differential = {};
  AttentionType type = AttentionType::kDecoder;
  std::int32_t shared_with = -1;  // the layer whose cache this one reads
};

// One layer's attention: queries, new keys and values, and where the result goes.
struct AttentionCall {
  TensorView query;  // [num_tokens, num_heads, head_size]
  TensorView key;    // [num_tokens, num_kv_heads, head_size]; empty where a cross-attention cache is already filled
  TensorView value;  // [num_tokens, num_kv_heads, head_size_v]
  TensorView output;
  RopeTable* rope = nullptr;  // query and key are rotated in place first; null: they are not
};

class PagedAttention {
 public:
  explicit PagedAttention(AttentionOptions options) : options_(std::move(options)) {}

  // Selects the backend on the first layer; later layers must fit it. Returns the layer's number.
  Result<std::int32_t> add_layer(const AttentionLayerSpec& spec);
  std::string_view backend_name() const;
  std::int32_t block_size() const { return options_.block_size; }
  std::int64_t num_blocks() const { return num_blocks_; }
  // Bytes of one block in all layers.
  Result<std::int64_t> block_bytes() const;
  Status allocate(std::int64_t num_blocks);
  // Layers see only the last keys, or tell positions from slots: a branching tree would be seen wrongly.
  bool has_window_or_alibi() const;

  // The swaps that bring a batch into the backend's order.
  std::vector<std::pair<std::int32_t, std::int32_t>> reorder(const ReorderInput& input) const;
  std::int32_t reorder_threshold() const;
  // Makes the metadata of a step; what `common` and `cross` point at must live until the next one. `cross` describes
  // the encoder's keys for cross-attention layers: seq_lens and block table are the encoder's.
  Status begin_step(const CommonAttentionMetadata& common, const CommonAttentionMetadata* cross = nullptr);
  Status run(std::int32_t layer, const AttentionCall& call);
  // Fills a cross-attention layer's cache with the encoder's keys and values at `slots`.
  Status store(std::int32_t layer, const TensorView& key, const TensorView& value, const TensorView& slots);
  // quire::move_tokens in all caches.
  Status move_tokens(std::span<const SlotPair> pairs);

  double seconds() const { return seconds_; }

 private:
  struct Group {
    BuilderConfig config;
    std::unique_ptr<AttentionMetadataBuilder> builder;
    AttentionMetadata metadata;
    int num_threads = 1;
  };
  struct Layer {
    AttentionLayerSpec spec;
    std::size_t group = 0;
    std::unique_ptr<AttentionImpl> impl;
    KVCacheSpec cache_spec;
    AttentionLayer scales;
    std::shared_ptr<std::byte[]> memory;
    TensorView cache;
    KVSource source;
  };
  Status choose_backend(const AttentionLayerSpec& spec);
  std::size_t group_of(const AttentionLayerSpec& spec);
  Status make_builders();

  AttentionOptions options_;
  const AttentionBackend* backend_ = nullptr;
  KVCacheLayout layout_ = KVCacheLayout::kNHD;  // as the environment says, else what the device reads fastest
  std::vector<Layer> layers_;
  std::vector<Group> groups_;
  std::int64_t num_blocks_ = 0;
  std::shared_ptr<std::byte[]> workspace_;
  std::size_t workspace_bytes_ = 0;
  TensorView slot_mapping_;
  TensorView positions_;
  std::int64_t end_position_ = 0;  // one more than the largest position of the step
  double seconds_ = 0.0;
};

}  // namespace quire
