// From the structs of the C API to C++ values, and tensors back.
#include "backends/c_api_convert.h"

#include <algorithm>
#include <cstring>

namespace quire::c_api {
namespace {

static_assert(static_cast<int>(StatusCode::kInternal) == QUIRE_INTERNAL);
static_assert(static_cast<int>(DType::kInt64) == QUIRE_INT64 && kNumDTypes == QUIRE_INT64 + 1);
static_assert(static_cast<int>(KVCacheDType::kFp8PerTokenHead) == QUIRE_KV_FP8_PER_TOKEN_HEAD);
static_assert(static_cast<int>(KVCacheLayout::kHND) == QUIRE_HND);
static_assert(static_cast<int>(AttentionType::kEncoderDecoder) == QUIRE_ENCODER_DECODER);
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
  KVCacheLayout layout;
  AttentionType attn_type;
  Runtime runtime;
};

Result<LayerEnums> enums_of(const QuireLayerConfig& from) {
  LayerEnums out{};
  QUIRE_ASSIGN_OR_RETURN(out.dtype, enum_of(from.dtype, DType::kInt64, "dtype"));
  QUIRE_ASSIGN_OR_RETURN(out.cache_dtype,
                         enum_of(from.kv_cache_dtype, KVCacheDType::kFp8PerTokenHead, "kv_cache_dtype"));
  QUIRE_ASSIGN_OR_RETURN(out.layout, enum_of(from.layout, KVCacheLayout::kHND, "layout"));
  QUIRE_ASSIGN_OR_RETURN(out.attn_type, enum_of(from.attn_type, AttentionType::kEncoderDecoder, "attn_type"));
  QUIRE_ASSIGN_OR_RETURN(out.runtime, runtime_of(from.runtime));
  return out;
}

DifferentialConfig differential_of(const QuireLayerConfig& from) {
  return {.layer_idx = from.layer_idx,
          .lambda_init = {},
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
  config.alibi = from.use_alibi_sqrt != 0 ? AlibiKind::kSqrt : AlibiKind::kLinear;
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
  if (from.tree != nullptr) {
    QUIRE_ASSIGN_OR_RETURN(config.tree, TokenTree::parse(from.tree));
  }
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
  config.use_alibi_sqrt = from.alibi_slopes != nullptr && from.use_alibi_sqrt != 0;
  config.attn_type = enums.attn_type;
  config.backplane = enums.runtime.backplane;
  return config;
}

Result<KVCacheSpec> cache_spec_of(const AttentionBackend& backend, const QuireLayerConfig& from) {
  QUIRE_ASSIGN_OR_RETURN(const LayerEnums enums, enums_of(from));
  const KVCacheSpec spec{.format = backend.kv_cache_format(),
                         .layout = enums.layout,
                         .cache_dtype = enums.cache_dtype,
                         .model_dtype = enums.dtype,
                         .num_blocks = from.num_blocks,
                         .block_size = from.block_size,
                         .num_kv_heads = from.num_kv_heads,
                         .head_size = from.head_size,
                         .head_size_v = from.head_size_v};
  QUIRE_RETURN_IF_ERROR(backend.kv_cache_shape(spec).status());
  return spec;
}

Result<CommonAttentionMetadata> batch_of(const QuireBatch& from) {
  if (from.num_reqs < 0) {
    return invalid_argument("num_reqs: want >= 0, got " + std::to_string(from.num_reqs));
  }
  QUIRE_RETURN_IF_ERROR(check_pointer(from.query_start_loc, "query_start_loc"));
  if (from.num_reqs > 0) QUIRE_RETURN_IF_ERROR(check_pointer(from.seq_lens, "seq_lens"));
  const auto num_reqs = static_cast<std::size_t>(from.num_reqs);
  CommonAttentionMetadata common;
  common.query_start_loc_cpu = {from.query_start_loc, num_reqs + 1};
  common.seq_lens_cpu = {from.seq_lens, num_reqs};
  if (from.encoder_seq_lens != nullptr) common.encoder_seq_lens_cpu = {from.encoder_seq_lens, num_reqs};
  common.num_reqs = from.num_reqs;
  common.num_actual_tokens = from.query_start_loc[num_reqs];
  for (std::size_t req = 0; req < num_reqs; ++req) {
    const std::int64_t query_len = static_cast<std::int64_t>(from.query_start_loc[req + 1]) - from.query_start_loc[req];
    if (query_len > common.max_query_len) common.max_query_len = static_cast<std::int32_t>(query_len);
    common.max_seq_len = std::max(common.max_seq_len, from.seq_lens[req]);
  }
  common.causal = from.not_causal == 0;
  QUIRE_ASSIGN_OR_RETURN(common.block_table_tensor, tensor_of(from.block_table, "block_table"));
  QUIRE_ASSIGN_OR_RETURN(common.slot_mapping, tensor_of(from.slot_mapping, "slot_mapping"));
  return common;
}

AttentionLayer layer_of(const QuireScales* scales) {
  AttentionLayer layer;
  if (scales == nullptr) return layer;
  layer.q_scale = scales->q_scale;
  layer.kv_scales.k_scale = scales->k_scale;
  layer.kv_scales.v_scale = scales->v_scale;
  return layer;
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

}  // namespace quire::c_api
