// From the structs of the C API to C++ values, and tensors back.
#include "backends/c_api_convert.h"

#include <algorithm>
#include <cstring>

#include "quire/cuda.h"

namespace quire::c_api {
namespace {

static_assert(static_cast<int>(StatusCode::kInternal) == QUIRE_INTERNAL);
static_assert(static_cast<int>(DType::kInt64) == QUIRE_INT64 && kNumDTypes == QUIRE_INT64 + 1);
static_assert(static_cast<int>(KVCacheDType::kFp8PerTokenHead) == QUIRE_KV_FP8_PER_TOKEN_HEAD);
static_assert(static_cast<int>(KVCacheLayout::kHND) == QUIRE_HND);
static_assert(static_cast<int>(AttentionType::kEncoderDecoder) == QUIRE_ENCODER_DECODER);
static_assert(static_cast<int>(ScalePlacement::kSeparate) == QUIRE_SCALES_SEPARATE);
static_assert(static_cast<int>(AlibiKind::kDistance) == QUIRE_ALIBI_DISTANCE);
static_assert(static_cast<int>(RopeStyle::kGptj) == QUIRE_ROPE_GPTJ);
static_assert(static_cast<int>(CudagraphSupport::kAlways) == QUIRE_CUDAGRAPH_ALWAYS);
static_assert(static_cast<int>(KVSplits::kFixed) == QUIRE_SPLITS_FIXED);
static_assert(static_cast<int>(Backplane::kCuda) == QUIRE_CUDA);
static_assert(static_cast<int>(DeviceType::kCuda) == QUIRE_DEVICE_CUDA);

std::span<const float> floats(const float* data, std::int64_t count) {
  return {data, data == nullptr || count < 0 ? 0 : static_cast<std::size_t>(count)};
}

std::optional<std::int32_t> unless_zero(std::int32_t value) {
  return value == 0 ? std::nullopt : std::optional<std::int32_t>(value);
}

// The parts of a layer's configuration that two or more of the C++ structs have.
struct LayerEnums {
  DType dtype;
  KVCacheDType cache_dtype;
  ScalePlacement scales;
  KVCacheLayout layout;
  AttentionType attn_type;
  AlibiKind alibi;
  Runtime runtime;
};

Result<LayerEnums> enums_of(const QuireLayerConfig& from) {
  LayerEnums out{};
  QUIRE_ASSIGN_OR_RETURN(out.dtype, enum_of(from.dtype, DType::kInt64, "dtype"));
  QUIRE_ASSIGN_OR_RETURN(out.cache_dtype,
                         enum_of(from.kv_cache_dtype, KVCacheDType::kFp8PerTokenHead, "kv_cache_dtype"));
  QUIRE_ASSIGN_OR_RETURN(out.scales, enum_of(from.scale_placement, ScalePlacement::kSeparate, "scale_placement"));
  QUIRE_ASSIGN_OR_RETURN(out.alibi, enum_of(from.alibi, AlibiKind::kDistance, "alibi"));
  QUIRE_ASSIGN_OR_RETURN(out.layout, enum_of(from.layout, KVCacheLayout::kHND, "layout"));
  QUIRE_ASSIGN_OR_RETURN(out.attn_type, enum_of(from.attn_type, AttentionType::kEncoderDecoder, "attn_type"));
  QUIRE_ASSIGN_OR_RETURN(out.runtime, runtime_of(from.runtime));
  return out;
}

DifferentialConfig differential_of(const QuireLayerConfig& from) {
  return {.layer_idx = from.layer_idx,
          .lambda_init = from.lambda_init == nullptr ? std::nullopt : std::optional<double>(*from.lambda_init),
          .lambda_q1 = floats(from.lambda_q1, from.head_size),
          .lambda_k1 = floats(from.lambda_k1, from.head_size),
          .lambda_q2 = floats(from.lambda_q2, from.head_size),
          .lambda_k2 = floats(from.lambda_k2, from.head_size),
          .subln_weight = floats(from.subln_weight, 2 * static_cast<std::int64_t>(from.head_size)),
          .subln_eps = from.subln_eps};
}

}  // namespace

Status check_pointer(const void* pointer, std::string_view name) {
  return pointer != nullptr ? Status{} : invalid_argument(std::string(name) + ": want a pointer, got null");
}

Result<TensorView> tensor_of(const QuireTensor* from, std::string_view name) {
  TensorView view;
  if (from == nullptr || from->data == nullptr) return view;
  QUIRE_ASSIGN_OR_RETURN(view.dtype, enum_of(from->dtype, DType::kInt64, std::string(name) + ".dtype"));
  const bool known = from->device_type == QUIRE_DEVICE_CPU || from->device_type == QUIRE_DEVICE_CUDA;
  if (!known || from->rank < 0 || from->rank > kMaxRank) {
    return invalid_argument(std::string(name) + ": want device type 1 or 2 and rank 0 to 8, got " +
                            std::to_string(from->device_type) + " and " + std::to_string(from->rank));
  }
  view.data = from->data;
  view.device = {static_cast<DeviceType>(from->device_type), from->device_index};
  view.rank = from->rank;
  std::memcpy(view.shape.data(), from->shape, sizeof(from->shape));
  std::memcpy(view.strides.data(), from->strides, sizeof(from->strides));
  return view;
}

void tensor_to(const TensorView& view, QuireTensor& to) {
  to = QuireTensor{};
  to.data = view.data;
  to.device_type = static_cast<std::int32_t>(view.device.type);
  to.device_index = view.device.index;
  to.dtype = static_cast<std::int32_t>(view.dtype);
  to.rank = view.rank;
  std::memcpy(to.shape, view.shape.data(), sizeof(to.shape));
  std::memcpy(to.strides, view.strides.data(), sizeof(to.strides));
}

Result<Runtime> runtime_of(const QuireRuntime& from) {
  Runtime runtime;
  QUIRE_ASSIGN_OR_RETURN(runtime.backplane, enum_of(from.backplane, Backplane::kCuda, "runtime.backplane"));
  QUIRE_ASSIGN_OR_RETURN(runtime.isa, enum_of(from.isa, Isa::kAvx512Bf16, "runtime.isa"));
  runtime.num_threads = from.num_threads;
  runtime.stream = from.stream;
  QUIRE_ASSIGN_OR_RETURN(runtime.splits, enum_of(from.splits, KVSplits::kFixed, "runtime.splits"));
  return runtime;
}

Result<ImplConfig> impl_config_of(const QuireLayerConfig& from) {
  QUIRE_ASSIGN_OR_RETURN(const LayerEnums enums, enums_of(from));
  ImplConfig config;
  config.num_heads = from.num_heads;
  config.num_kv_heads = from.num_kv_heads;
  config.head_size = from.head_size;
  config.head_size_v = from.head_size_v;
  config.scale = from.scale;
  config.alibi_slopes = floats(from.alibi_slopes, from.num_heads);
  config.alibi = enums.alibi;
  config.sliding_window = unless_zero(from.sliding_window);
  config.chunk = from.chunk;
  config.chunk_lookback = from.chunk_lookback;
  config.kv_cache_dtype = enums.cache_dtype;
  config.logits_soft_cap = from.logits_soft_cap;
  config.attn_type = enums.attn_type;
  if (from.shares_kv_cache != 0) config.kv_sharing_target_layer_name = "shared";
  config.sinks = floats(from.sinks, from.num_heads);
  if (from.subln_weight != nullptr) config.differential = differential_of(from);
  config.dtype = enums.dtype;
  config.layout = enums.layout;
  config.scale_placement = enums.scales;
  config.block_size = from.block_size;
  config.runtime = enums.runtime;
  return config;
}

Result<BuilderConfig> builder_config_of(const QuireLayerConfig& from) {
  QUIRE_ASSIGN_OR_RETURN(const LayerEnums enums, enums_of(from));
  BuilderConfig config;
  config.num_heads = from.num_heads;
  config.num_kv_heads = from.num_kv_heads;
  config.head_size = from.head_size;
  config.head_size_v = from.head_size_v;
  config.block_size = from.block_size;
  config.num_blocks = from.num_blocks;
  config.sliding_window = unless_zero(from.sliding_window);
  config.chunk = from.chunk;
  config.chunk_lookback = from.chunk_lookback;
  config.attn_type = enums.attn_type;
  config.num_speculative_tokens = from.num_speculative_tokens;
  config.runtime = enums.runtime;
  if (from.tree != nullptr) config.tree = from.tree->tree;
  return config;
}

Result<AttentionConfig> attention_config_of(const QuireLayerConfig& from) {
  QUIRE_ASSIGN_OR_RETURN(const LayerEnums enums, enums_of(from));
  AttentionConfig config;
  config.head_size = from.head_size;
  config.head_size_v = from.head_size_v;
  config.dtype = enums.dtype;
  config.kv_cache_dtype = enums.cache_dtype;
  config.block_size = from.block_size;
  config.has_sink = from.sinks != nullptr;
  config.use_alibi_sqrt = from.alibi_slopes != nullptr && enums.alibi == AlibiKind::kSqrt;
  config.use_mm_prefix = from.use_mm_prefix != 0;
  config.use_non_causal = from.use_non_causal != 0;
  config.use_batch_invariant = from.use_batch_invariant != 0;
  config.use_kv_connector = from.use_kv_connector != 0;
  config.use_output_quant = from.use_output_quant != 0;
  config.use_mla = from.use_mla != 0;
  config.use_sparse = from.use_sparse != 0;
  config.use_per_head_quant_scales = from.use_per_head_quant_scales != 0;
  config.attn_type = enums.attn_type;
  config.backplane = enums.runtime.backplane;
  config.device_capability = {from.capability_major, from.capability_minor};
  if (config.backplane == Backplane::kCuda && from.capability_major == 0) {
    QUIRE_ASSIGN_OR_RETURN(const cuda::DeviceInfo device, cuda::device_info());
    config.device_capability = {device.major, device.minor};
  }
  return config;
}

Result<KVCacheSpec> cache_spec_of(const AttentionBackend& backend, const QuireLayerConfig& from) {
  QUIRE_ASSIGN_OR_RETURN(const LayerEnums enums, enums_of(from));
  const KVCacheSpec spec{.format = backend.kv_cache_format(),
                         .layout = enums.layout,
                         .cache_dtype = enums.cache_dtype,
                         .model_dtype = enums.dtype,
                         .scales = enums.scales,
                         .num_blocks = from.num_blocks,
                         .block_size = from.block_size,
                         .num_kv_heads = from.num_kv_heads,
                         .head_size = from.head_size,
                         .head_size_v = from.head_size_v};
  QUIRE_RETURN_IF_ERROR(backend.kv_cache_shape(spec).status());
  return spec;
}

namespace {

// Ranges and where each request's begin.
Status add_mm_ranges(const QuireBatch& from, Batch& out) {
  if (from.mm_ranges == nullptr && from.mm_range_start == nullptr) return {};
  QUIRE_RETURN_IF_ERROR(check_pointer(from.mm_range_start, "mm_range_start"));
  const auto num_reqs = static_cast<std::size_t>(from.num_reqs);
  const std::int32_t count = from.mm_range_start[num_reqs];
  if (count < 0) {
    return invalid_argument("mm_range_start[" + std::to_string(num_reqs) + "]: want >= 0, got " +
                            std::to_string(count));
  }
  if (count > 0) QUIRE_RETURN_IF_ERROR(check_pointer(from.mm_ranges, "mm_ranges"));
  for (std::int32_t i = 0; i < count; ++i) out.mm_ranges.push_back({from.mm_ranges[i].start, from.mm_ranges[i].end});
  out.common.mm_ranges = out.mm_ranges;
  out.common.mm_range_start = {from.mm_range_start, num_reqs + 1};
  return {};
}

// Longest lengths that the caller did not give.
void add_lengths(const QuireBatch& from, CommonAttentionMetadata& common) {
  common.max_query_len = from.max_query_len;
  common.max_seq_len = from.max_seq_len;
  for (std::int32_t req = 0; req < from.num_reqs; ++req) {
    const std::int64_t query_len = std::int64_t{from.query_start_loc[req + 1]} - from.query_start_loc[req];
    if (from.max_query_len == 0 && query_len > common.max_query_len) {
      common.max_query_len = static_cast<std::int32_t>(query_len);
    }
    if (from.max_seq_len == 0) common.max_seq_len = std::max(common.max_seq_len, from.seq_lens[req]);
  }
}

}  // namespace

Result<Batch> batch_of(const QuireBatch& from) {
  if (from.num_reqs < 0) {
    return invalid_argument("num_reqs: want >= 0, got " + std::to_string(from.num_reqs));
  }
  QUIRE_RETURN_IF_ERROR(check_pointer(from.query_start_loc, "query_start_loc"));
  if (from.num_reqs > 0) QUIRE_RETURN_IF_ERROR(check_pointer(from.seq_lens, "seq_lens"));
  const auto num_reqs = static_cast<std::size_t>(from.num_reqs);
  Batch out;
  CommonAttentionMetadata& common = out.common;
  common.query_start_loc_cpu = {from.query_start_loc, num_reqs + 1};
  common.seq_lens_cpu = {from.seq_lens, num_reqs};
  if (from.encoder_seq_lens != nullptr) common.encoder_seq_lens_cpu = {from.encoder_seq_lens, num_reqs};
  if (from.causal_per_seq != nullptr) common.causal_per_seq = {from.causal_per_seq, num_reqs};
  if (from.is_prefilling != nullptr) common.is_prefilling = {from.is_prefilling, num_reqs};
  common.num_reqs = from.num_reqs;
  common.num_actual_tokens = from.query_start_loc[num_reqs];
  common.causal = from.not_causal == 0;
  add_lengths(from, common);
  QUIRE_RETURN_IF_ERROR(add_mm_ranges(from, out));
  for (std::size_t req = 0; from.trees != nullptr && req < num_reqs; ++req) {
    out.trees.push_back(from.trees[req] == nullptr ? nullptr : &from.trees[req]->tree);
  }
  common.trees = out.trees;
  QUIRE_ASSIGN_OR_RETURN(common.query_start_loc, tensor_of(from.query_start_loc_device, "query_start_loc_device"));
  QUIRE_ASSIGN_OR_RETURN(common.seq_lens, tensor_of(from.seq_lens_device, "seq_lens_device"));
  QUIRE_ASSIGN_OR_RETURN(common.block_table_tensor, tensor_of(from.block_table, "block_table"));
  QUIRE_ASSIGN_OR_RETURN(common.slot_mapping, tensor_of(from.slot_mapping, "slot_mapping"));
  return out;
}

Result<DraftLevelInput> draft_input_of(const QuireLayerConfig& config, const QuireDraftLevel& from) {
  QUIRE_RETURN_IF_ERROR(check_pointer(from.tree, "tree"));
  if (from.num_reqs < 0) return invalid_argument("num_reqs: want >= 0, got " + std::to_string(from.num_reqs));
  if (from.num_reqs > 0) {
    QUIRE_RETURN_IF_ERROR(check_pointer(from.root_positions, "root_positions"));
    QUIRE_RETURN_IF_ERROR(check_pointer(from.seq_lens, "seq_lens"));
    QUIRE_RETURN_IF_ERROR(check_pointer(from.positions, "positions"));
    QUIRE_RETURN_IF_ERROR(check_pointer(from.slot_mapping, "slot_mapping"));
  }
  QUIRE_RETURN_IF_ERROR(check_pointer(from.query_start_loc, "query_start_loc"));
  DraftLevelInput input{.tree = &from.tree->tree,
                        .level = from.level,
                        .root_positions = {from.root_positions, static_cast<std::size_t>(from.num_reqs)},
                        .block_table = {},
                        .block_size = config.block_size,
                        .num_blocks = config.num_blocks,
                        .max_model_len = from.max_model_len};
  QUIRE_ASSIGN_OR_RETURN(input.block_table, tensor_of(from.block_table, "block_table"));
  return input;
}

Result<ReorderInput> reorder_input_of(const QuireReorder& from) {
  if (from.num_reqs < 0) return invalid_argument("num_reqs: want >= 0, got " + std::to_string(from.num_reqs));
  const auto num_reqs = static_cast<std::size_t>(from.num_reqs);
  if (num_reqs > 0) {
    QUIRE_RETURN_IF_ERROR(check_pointer(from.num_scheduled_tokens, "num_scheduled_tokens"));
    QUIRE_RETURN_IF_ERROR(check_pointer(from.num_computed_tokens, "num_computed_tokens"));
  }
  return ReorderInput{.num_scheduled_tokens = {from.num_scheduled_tokens, num_reqs},
                      .num_computed_tokens = {from.num_computed_tokens, num_reqs}};
}

Result<AttentionLayer> layer_of(const QuireScales* scales) {
  AttentionLayer layer;
  if (scales == nullptr) return layer;
  layer.q_scale = scales->q_scale;
  layer.kv_scales.k_scale = scales->k_scale;
  layer.kv_scales.v_scale = scales->v_scale;
  QUIRE_ASSIGN_OR_RETURN(layer.kv_scales.k_scale_cache, tensor_of(scales->k_scale_cache, "k_scale_cache"));
  QUIRE_ASSIGN_OR_RETURN(layer.kv_scales.v_scale_cache, tensor_of(scales->v_scale_cache, "v_scale_cache"));
  return layer;
}

Result<RopeUpdate> rope_update_of(const QuireRopeUpdate& from) {
  RopeUpdate update;
  QUIRE_ASSIGN_OR_RETURN(update.rope.query, tensor_of(from.query, "query"));
  QUIRE_ASSIGN_OR_RETURN(update.rope.positions, tensor_of(from.positions, "positions"));
  QUIRE_ASSIGN_OR_RETURN(update.rope.cos_sin_cache, tensor_of(from.cos_sin_cache, "cos_sin_cache"));
  QUIRE_ASSIGN_OR_RETURN(update.rope.style, enum_of(from.style, RopeStyle::kGptj, "style"));
  QUIRE_ASSIGN_OR_RETURN(update.key, tensor_of(from.key, "key"));
  QUIRE_ASSIGN_OR_RETURN(update.value, tensor_of(from.value, "value"));
  QUIRE_ASSIGN_OR_RETURN(update.kv_cache, tensor_of(from.kv_cache, "kv_cache"));
  QUIRE_ASSIGN_OR_RETURN(update.slot_mapping, tensor_of(from.slot_mapping, "slot_mapping"));
  return update;
}

Result<ForwardArgs> forward_args_of(const QuireForward& from) {
  ForwardArgs args;
  QUIRE_ASSIGN_OR_RETURN(args.query, tensor_of(from.query, "query"));
  QUIRE_ASSIGN_OR_RETURN(args.key, tensor_of(from.key, "key"));
  QUIRE_ASSIGN_OR_RETURN(args.value, tensor_of(from.value, "value"));
  QUIRE_ASSIGN_OR_RETURN(args.kv_cache, tensor_of(from.kv_cache, "kv_cache"));
  QUIRE_ASSIGN_OR_RETURN(args.output, tensor_of(from.output, "output"));
  QUIRE_ASSIGN_OR_RETURN(args.output_block_scale, tensor_of(from.output_block_scale, "output_block_scale"));
  QUIRE_ASSIGN_OR_RETURN(args.lse, tensor_of(from.lse, "lse"));
  if (from.output_scale != 0.0f) args.output_scale = from.output_scale;
  args.workspace = {static_cast<std::byte*>(from.workspace), from.workspace == nullptr ? 0 : from.workspace_bytes};
  return args;
}

Result<MergeStatesArgs> merge_args_of(const QuireMergeStates& from) {
  MergeStatesArgs args;
  QUIRE_ASSIGN_OR_RETURN(args.prefix_output, tensor_of(from.prefix_output, "prefix_output"));
  QUIRE_ASSIGN_OR_RETURN(args.prefix_lse, tensor_of(from.prefix_lse, "prefix_lse"));
  QUIRE_ASSIGN_OR_RETURN(args.suffix_output, tensor_of(from.suffix_output, "suffix_output"));
  QUIRE_ASSIGN_OR_RETURN(args.suffix_lse, tensor_of(from.suffix_lse, "suffix_lse"));
  QUIRE_ASSIGN_OR_RETURN(args.output, tensor_of(from.output, "output"));
  QUIRE_ASSIGN_OR_RETURN(args.output_lse, tensor_of(from.output_lse, "output_lse"));
  args.output_scale = from.output_scale;
  args.prefill_tokens_with_context = from.prefill_tokens_with_context;
  return args;
}

Result<KVSource> kv_source_of(const QuireKVCache* from, const std::string& name) {
  QUIRE_RETURN_IF_ERROR(check_pointer(from, name));
  QUIRE_RETURN_IF_ERROR(check_pointer(from->backend, name + ".backend"));
  QUIRE_RETURN_IF_ERROR(check_pointer(from->config, name + ".config"));
  QUIRE_ASSIGN_OR_RETURN(const TensorView cache, tensor_of(from->kv_cache, name + ".kv_cache"));
  if (cache.empty()) return invalid_argument(name + ".kv_cache: want a tensor, got none");
  const auto& backend = *reinterpret_cast<const AttentionBackend*>(from->backend);
  const int block_dim = backend.kv_cache_block_dim();
  QuireLayerConfig config = *from->config;
  config.num_blocks = block_dim < cache.rank ? cache.size(block_dim) : 0;
  QUIRE_ASSIGN_OR_RETURN(const KVCacheSpec spec, cache_spec_of(backend, config));
  QUIRE_ASSIGN_OR_RETURN(const AttentionLayer layer, layer_of(from->scales));
  return bind_kv_cache(spec, cache, layer.kv_scales);
}

}  // namespace quire::c_api
