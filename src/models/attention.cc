// Implements PagedAttention on the public API of the backends.
#include "models/attention.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <new>
#include <utility>

#include "core/checked.h"
#include "models/threads.h"

namespace quire {
namespace {

std::shared_ptr<std::byte[]> aligned_bytes(std::size_t bytes) {
  constexpr std::align_val_t kAlignment{64};
  auto* data = static_cast<std::byte*>(::operator new(std::max<std::size_t>(bytes, 64), kAlignment, std::nothrow));
  if (data == nullptr) return nullptr;
  return {data, [](std::byte* memory) { ::operator delete (memory, std::align_val_t{64}); }};
}

// Attention of fewer products than this runs on one thread.
constexpr std::int64_t kSerialProducts = std::int64_t{1} << 21;

int threads_for(const BuilderConfig& config, const AttentionMetadata& metadata) {
  std::int64_t pairs = 0;
  for (std::size_t i = 0; i < metadata.seq_lens.size(); ++i) {
    pairs += std::int64_t{metadata.query_start_loc[i + 1] - metadata.query_start_loc[i]} * metadata.seq_lens[i];
  }
  const std::int64_t width = config.head_size + (config.head_size_v == 0 ? config.head_size : config.head_size_v);
  return pairs * config.num_heads * width < kSerialProducts ? 1 : omp_get_max_threads();
}

bool has_cache(AttentionType type) { return type == AttentionType::kDecoder || type == AttentionType::kEncoderDecoder; }

DifferentialConfig differential_config(const DifferentialLayer& layer) {
  DifferentialConfig out;
  out.layer_idx = layer.layer_idx;
  out.lambda_q1 = layer.lambda_q1;
  out.lambda_k1 = layer.lambda_k1;
  out.lambda_q2 = layer.lambda_q2;
  out.lambda_k2 = layer.lambda_k2;
  out.subln_weight = layer.subln_weight;
  out.subln_eps = layer.subln_eps;
  return out;
}

}  // namespace

Status PagedAttention::choose_backend(const AttentionLayerSpec& spec) {
  AttentionConfig config;
  config.head_size = spec.head_size;
  config.head_size_v = spec.head_size_v;
  config.dtype = options_.dtype;
  config.kv_cache_dtype = options_.kv_cache_dtype;
  config.block_size = options_.block_size;
  config.has_sink = !spec.sinks.empty();
  config.attn_type = spec.type;
  config.backplane = options_.runtime.backplane;
  const std::string_view name = backend_ != nullptr ? backend_->name() : std::string_view(options_.backend);
  QUIRE_ASSIGN_OR_RETURN(const BackendSelection selection, select_backend(config, name));
  if (backend_ == nullptr) {
    QUIRE_ASSIGN_OR_RETURN(layout_,
                           default_kv_cache_layout(fastest_kv_cache_layout(*selection.backend, config.backplane)));
  }
  backend_ = selection.backend;
  return {};
}

std::size_t PagedAttention::group_of(const AttentionLayerSpec& spec) {
  const auto same = [&spec](const Group& group) {
    const BuilderConfig& c = group.config;
    return c.num_heads == spec.num_heads && c.num_kv_heads == spec.num_kv_heads && c.head_size == spec.head_size &&
           c.head_size_v == spec.head_size_v && c.sliding_window == spec.sliding_window && c.attn_type == spec.type;
  };
  const auto found = std::find_if(groups_.begin(), groups_.end(), same);
  if (found != groups_.end()) return static_cast<std::size_t>(found - groups_.begin());
  Group group;
  group.config.num_heads = spec.num_heads;
  group.config.num_kv_heads = spec.num_kv_heads;
  group.config.head_size = spec.head_size;
  group.config.head_size_v = spec.head_size_v;
  group.config.block_size = options_.block_size;
  group.config.sliding_window = spec.sliding_window;
  group.config.attn_type = spec.type;
  group.config.runtime = options_.runtime;
  groups_.push_back(std::move(group));
  return groups_.size() - 1;
}

Result<std::int32_t> PagedAttention::add_layer(const AttentionLayerSpec& spec) {
  QUIRE_RETURN_IF_ERROR(choose_backend(spec));
  if (spec.shared_with >= static_cast<std::int32_t>(layers_.size())) {
    return invalid_argument("shared_with: want an earlier layer, got " + std::to_string(spec.shared_with));
  }
  Layer layer;
  layer.spec = spec;
  layer.group = group_of(spec);
  ImplConfig config;
  config.num_heads = spec.num_heads;
  config.head_size = spec.head_size;
  config.head_size_v = spec.head_size_v;
  config.scale = spec.scale;
  config.num_kv_heads = spec.num_kv_heads;
  config.alibi_slopes = layer.spec.alibi_slopes;
  config.alibi = AlibiKind::kDistance;  // the same numbers however a prompt is cut; kLinear counts from a chunk's start
  config.sliding_window = spec.sliding_window;
  config.kv_cache_dtype = options_.kv_cache_dtype;
  config.logits_soft_cap = spec.softcap;
  config.attn_type = spec.type;
  config.sinks = layer.spec.sinks;
  if (spec.differential) config.differential = differential_config(*layer.spec.differential);
  config.dtype = options_.dtype;
  config.layout = layout_;
  config.block_size = options_.block_size;
  config.runtime = options_.runtime;
  if (spec.shared_with >= 0) config.kv_sharing_target_layer_name = "layer " + std::to_string(spec.shared_with);
  QUIRE_ASSIGN_OR_RETURN(layer.impl, backend_->make_impl(config));
  layer.cache_spec = {.format = backend_->kv_cache_format(),
                      .layout = layout_,
                      .cache_dtype = options_.kv_cache_dtype,
                      .model_dtype = options_.dtype,
                      .num_blocks = 1,
                      .block_size = options_.block_size,
                      .num_kv_heads = spec.num_kv_heads,
                      .head_size = spec.head_size,
                      .head_size_v = spec.head_size_v};
  layers_.push_back(std::move(layer));
  return static_cast<std::int32_t>(layers_.size()) - 1;
}

std::string_view PagedAttention::backend_name() const { return backend_ == nullptr ? "" : backend_->name(); }

Result<std::int64_t> PagedAttention::block_bytes() const {
  std::int64_t total = 0;
  for (const Layer& layer : layers_) {
    if (layer.spec.shared_with >= 0 || !has_cache(layer.spec.type)) continue;
    QUIRE_ASSIGN_OR_RETURN(const std::int64_t bytes, kv_block_bytes(layer.cache_spec));
    total += bytes;
  }
  return total;
}

Status PagedAttention::allocate(std::int64_t num_blocks) {
  num_blocks_ = num_blocks;
  for (Layer& layer : layers_) {
    if (!has_cache(layer.spec.type)) continue;
    layer.cache_spec.num_blocks = num_blocks;
    QUIRE_RETURN_IF_ERROR(backend_->kv_cache_shape(layer.cache_spec).status());
    if (layer.spec.shared_with >= 0) {
      const Layer& owner = layers_[static_cast<std::size_t>(layer.spec.shared_with)];
      layer.memory = owner.memory;
      layer.cache = owner.cache;
      layer.source = owner.source;
      continue;
    }
    QUIRE_ASSIGN_OR_RETURN(const std::int64_t bytes, kv_cache_bytes(layer.cache_spec));
    layer.memory = aligned_bytes(static_cast<std::size_t>(bytes));
    if (layer.memory == nullptr) {
      return resource_exhausted("KV cache: want " + std::to_string(bytes) + " bytes for a layer, got none");
    }
    std::memset(layer.memory.get(), 0, static_cast<std::size_t>(bytes));
    QUIRE_ASSIGN_OR_RETURN(layer.cache, view_kv_cache(layer.cache_spec, layer.memory.get()));
    QUIRE_ASSIGN_OR_RETURN(layer.source, bind_kv_cache(layer.cache_spec, layer.cache, layer.scales.kv_scales));
    QUIRE_RETURN_IF_ERROR(reset_kv_scales(layer.source));
  }
  return make_builders();
}

Status PagedAttention::make_builders() {
  for (Group& group : groups_) {
    group.config.num_blocks = num_blocks_;
    QUIRE_ASSIGN_OR_RETURN(group.builder, backend_->make_builder(group.config));
  }
  return {};
}

bool PagedAttention::has_window_or_alibi() const {
  return std::any_of(layers_.begin(), layers_.end(), [](const Layer& layer) {
    return layer.spec.sliding_window.has_value() || !layer.spec.alibi_slopes.empty();
  });
}

std::vector<std::pair<std::int32_t, std::int32_t>> PagedAttention::reorder(const ReorderInput& input) const {
  return groups_.front().builder->reorder_batch(input);
}

std::int32_t PagedAttention::reorder_threshold() const { return groups_.front().builder->reorder_batch_threshold(); }

Status PagedAttention::begin_step(const CommonAttentionMetadata& common, const CommonAttentionMetadata* cross) {
  const auto start = std::chrono::steady_clock::now();
  for (Group& group : groups_) {
    const bool crossed = group.config.attn_type == AttentionType::kEncoderDecoder;
    if (crossed && cross == nullptr) return invalid_argument("cross: want the encoder's keys, got none");
    QUIRE_ASSIGN_OR_RETURN(group.metadata, group.builder->build(0, crossed ? *cross : common));
    group.num_threads = threads_for(group.config, group.metadata);
  }
  std::size_t bytes = 0;
  for (const Layer& layer : layers_) {
    const Group& group = groups_[layer.group];
    const ThreadCount threads(group.num_threads);
    bytes = std::max(bytes, layer.impl->workspace_bytes(group.metadata));
  }
  if (bytes > workspace_bytes_) {
    workspace_ = aligned_bytes(bytes);
    if (workspace_ == nullptr) return resource_exhausted("attention: want " + std::to_string(bytes) + " scratch bytes");
    workspace_bytes_ = bytes;
  }
  slot_mapping_ = common.slot_mapping;
  positions_ = common.positions;
  end_position_ = 0;
  if (!positions_.empty()) {
    const auto* positions = positions_.as<const std::int64_t>();
    for (std::int64_t i = 0; i < positions_.size(0); ++i) end_position_ = std::max(end_position_, positions[i] + 1);
  }
  seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return {};
}

Status PagedAttention::run(std::int32_t index, const AttentionCall& call) {
  const auto start = std::chrono::steady_clock::now();
  Layer& layer = layers_[static_cast<std::size_t>(index)];
  const ThreadCount threads(groups_[layer.group].num_threads);
  if (layer.spec.type == AttentionType::kDecoder) {
    if (call.rope != nullptr) {
      call.rope->cover(end_position_);
      const RopeArgs rope{
          .query = call.query, .positions = positions_, .cos_sin_cache = call.rope->view(), .style = call.rope->style};
      QUIRE_RETURN_IF_ERROR(layer.impl->do_rope_and_kv_cache_update(layer.scales, rope, call.key, call.value,
                                                                    layer.cache, slot_mapping_));
    } else {
      QUIRE_RETURN_IF_ERROR(
          layer.impl->do_kv_cache_update(layer.scales, call.key, call.value, layer.cache, slot_mapping_));
    }
  }
  ForwardArgs args;
  args.query = call.query;
  args.key = call.key;
  args.value = call.value;
  args.kv_cache = layer.cache;
  args.metadata = &groups_[layer.group].metadata;
  args.output = call.output;
  args.workspace = {workspace_.get(), workspace_bytes_};
  QUIRE_RETURN_IF_ERROR(layer.impl->forward(layer.scales, args));
  seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return {};
}

Status PagedAttention::store(std::int32_t index, const TensorView& key, const TensorView& value,
                             const TensorView& slots) {
  Layer& layer = layers_[static_cast<std::size_t>(index)];
  return layer.impl->do_kv_cache_update(layer.scales, key, value, layer.cache, slots);
}

Status PagedAttention::move_tokens(std::span<const SlotPair> pairs) {
  if (pairs.empty()) return {};
  std::vector<KVSource> caches;
  for (const Layer& layer : layers_) {
    if (layer.spec.type == AttentionType::kDecoder && layer.spec.shared_with < 0) caches.push_back(layer.source);
  }
  return quire::move_tokens(caches, pairs);
}

}  // namespace quire
