// PagedImpl: checks of tensors and metadata, and the way from them to AttentionArgs.
#include "backends/paged_impl.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "backends/layer_config.h"
#include "core/checked.h"
#include "cuda/attention.h"
#include "quire/cuda.h"
#include "quire/ops.h"

namespace quire::backends {
namespace {

using std::to_string;

// The scales of fp8 outputs come one for this many elements of a token's heads x head_size_v row.
constexpr std::int64_t kOutputGroup = 128;

Status check_rows(std::string_view name, const TensorView& tensor, int dim, std::int64_t wanted) {
  if (tensor.size(dim) >= wanted) return {};
  return invalid_argument(std::string(name) + ".shape: want at least " + to_string(wanted) + " tokens, got " +
                          shape_string(tensor));
}

}  // namespace

Result<std::unique_ptr<AttentionImpl>> PagedImpl::create(const BackendTraits& traits, const ImplConfig& config) {
  QUIRE_RETURN_IF_ERROR(check_impl_config(traits, config));
  QUIRE_ASSIGN_OR_RETURN(Arrays arrays, place_arrays(config));
  return std::unique_ptr<AttentionImpl>(new PagedImpl(traits, config, std::move(arrays)));
}

Result<PagedImpl::Arrays> PagedImpl::place_arrays(const ImplConfig& config) {
  Arrays arrays;
  QUIRE_ASSIGN_OR_RETURN(arrays.alibi_slopes, LayerFloats::place(config.alibi_slopes, config.runtime));
  QUIRE_ASSIGN_OR_RETURN(arrays.sinks, LayerFloats::place(config.sinks, config.runtime));
  return arrays;
}

PagedImpl::PagedImpl(const BackendTraits& traits, const ImplConfig& config, Arrays arrays)
    : attn_type_(config.attn_type),
      dtype_(config.dtype),
      num_heads_(config.num_heads),
      spec_{.format = traits.format,
            .layout = config.layout,
            .cache_dtype = config.kv_cache_dtype,
            .model_dtype = config.dtype,
            .scales = config.scale_placement,
            .block_size = config.block_size,
            .num_kv_heads = config.num_kv_heads,
            .head_size = config.head_size,
            .head_size_v = config.head_size_v == 0 ? config.head_size : config.head_size_v},
      arrays_(std::move(arrays)),
      runtime_(config.runtime),
      shares_kv_(config.kv_sharing_target_layer_name.has_value()) {
  const Result<Variant> bounds = bounding_terms(config);
  if (bounds.ok()) variant_ = *bounds;  // always: check_impl_config has seen it
  variant_.scale = config.scale;
  variant_.softcap = config.logits_soft_cap.value_or(0.0f);
  if (!arrays_.alibi_slopes.empty()) {
    variant_.alibi = config.alibi;
    variant_.alibi_slopes = arrays_.alibi_slopes.data();
  }
  variant_.sinks = arrays_.sinks.data();
}

Status PagedImpl::check_device(std::string_view name, const TensorView& tensor) const {
  const DeviceType want = on_cuda() ? DeviceType::kCuda : DeviceType::kCpu;
  if (tensor.empty() || tensor.device.type == want) return {};
  return invalid_argument(std::string(name) + ".device: want " + (want == DeviceType::kCpu ? "cpu" : "cuda") +
                          ", got " + device_name(tensor.device));
}

Status PagedImpl::do_kv_cache_update(const AttentionLayer& layer, const TensorView& key, const TensorView& value,
                                     const TensorView& kv_cache, const TensorView& slot_mapping) const {
  if (!stores_keys()) return {};
  QUIRE_ASSIGN_OR_RETURN(const KVSource cache, bind_cache(layer, kv_cache));
  if (on_cuda()) return cuda::reshape_and_cache_flash(key, value, cache, slot_mapping, runtime_.stream);
  return reshape_and_cache_flash(key, value, cache, slot_mapping);
}

Status PagedImpl::do_rope_and_kv_cache_update(const AttentionLayer& layer, const RopeArgs& rope, const TensorView& key,
                                              const TensorView& value, const TensorView& kv_cache,
                                              const TensorView& slot_mapping) const {
  if (!reads_cache()) {
    return unsupported("do_rope_and_kv_cache_update: encoder attention stores nothing to fuse the rotation with");
  }
  QUIRE_ASSIGN_OR_RETURN(const KVSource cache, bind_cache(layer, kv_cache));
  const auto rotate_and_store = [&](const TensorView& keys, const TensorView& values, const TensorView& slots) {
    if (on_cuda()) return cuda::rope_and_cache_flash(rope, keys, values, cache, slots, runtime_.stream);
    return rope_and_cache_flash(rope, keys, values, cache, slots);
  };
  if (!shares_kv_) return rotate_and_store(key, value, slot_mapping);
  // No key and no slot: only the queries are rotated.
  const auto none = [&](std::int32_t size) {
    return make_tensor(rope.query.data, dtype_, {0, spec_.num_kv_heads, size}, kv_cache.device);
  };
  std::int64_t no_slot = -1;
  QUIRE_ASSIGN_OR_RETURN(const TensorView no_keys, none(spec_.head_size));
  QUIRE_ASSIGN_OR_RETURN(const TensorView no_values, none(spec_.head_size_v));
  QUIRE_ASSIGN_OR_RETURN(const TensorView no_slots, make_tensor(&no_slot, DType::kInt64, {0}, kv_cache.device));
  return rotate_and_store(no_keys, no_values, no_slots);
}

Result<KVSource> PagedImpl::bind_cache(const AttentionLayer& layer, const TensorView& kv_cache) const {
  if (kv_cache.empty()) return invalid_argument("kv_cache: want the cache of the layer, got none");
  QUIRE_RETURN_IF_ERROR(check_device("kv_cache", kv_cache));
  KVCacheSpec spec = spec_;
  const int block_dim = kv_block_dim(spec.format);
  spec.num_blocks = block_dim < kv_cache.rank ? kv_cache.size(block_dim) : 0;
  return bind_kv_cache(spec, kv_cache, layer.kv_scales);
}

// The new keys themselves, each sequence's from its first row on.
Result<KVSource> PagedImpl::bind_own_keys(const ForwardArgs& args, const AttentionMetadata& metadata) const {
  QUIRE_RETURN_IF_ERROR(check_tensor(args.key, {"key", {dtype_}, {kAny, spec_.num_kv_heads, spec_.head_size}}));
  QUIRE_RETURN_IF_ERROR(check_tensor(args.value, {"value", {dtype_}, {kAny, spec_.num_kv_heads, spec_.head_size_v}}));
  QUIRE_RETURN_IF_ERROR(check_rows("key", args.key, 0, metadata.num_actual_tokens));
  QUIRE_RETURN_IF_ERROR(check_rows("value", args.value, 0, metadata.num_actual_tokens));
  QUIRE_RETURN_IF_ERROR(check_device("key", args.key));
  QUIRE_RETURN_IF_ERROR(check_device("value", args.value));
  KVSource kv{.dtype = dtype_,
              .num_kv_heads = spec_.num_kv_heads,
              .head_size = spec_.head_size,
              .head_size_v = spec_.head_size_v,
              .device = args.key.device};
  kv.key[0] = {.data = args.key.data, .token_stride = args.key.stride(0), .head_stride = args.key.stride(1)};
  kv.value[0] = {.data = args.value.data, .token_stride = args.value.stride(0), .head_stride = args.value.stride(1)};
  return kv;
}

Status PagedImpl::check_metadata(const AttentionMetadata& metadata) const {
  if (attn_type_ != AttentionType::kDecoder && metadata.causal) {
    return invalid_argument("metadata.causal: want false for attention type " +
                            std::string(attention_type_name(attn_type_)) + ", got true");
  }
  if (!bounds_cover(metadata.plan_variant, variant_)) {
    return invalid_argument("metadata.plan: want a plan for keys as far as this layer sees (window " +
                            to_string(variant_.window_left + 1) + ", chunk " + to_string(variant_.chunk) +
                            "; 0 is none), got one for window " + to_string(metadata.plan_variant.window_left + 1) +
                            ", chunk " + to_string(metadata.plan_variant.chunk));
  }
  if (on_cuda() != (metadata.device_arrays != nullptr)) {
    return invalid_argument(std::string("metadata: want it built for the layer's backplane ") +
                            std::string(backplane_name(runtime_.backplane)) + ", got it built for " +
                            (on_cuda() ? "the host" : "cuda"));
  }
  if (!reads_cache()) return {};
  if (metadata.block_table.empty()) return invalid_argument("metadata.block_table: want a table, got none");
  QUIRE_RETURN_IF_ERROR(check_device("metadata.block_table", metadata.block_table));
  if (metadata.block_size != spec_.block_size) {
    return invalid_argument("metadata.block_size: want " + to_string(spec_.block_size) + ", got " +
                            to_string(metadata.block_size));
  }
  return {};
}

Status PagedImpl::check_query_and_output(const ForwardArgs& args, std::int64_t num_tokens) const {
  const std::int64_t head_size_v = spec_.head_size_v;
  QUIRE_RETURN_IF_ERROR(
      check_tensor(args.query, {"query", {dtype_, DType::kFloat8E4M3}, {kAny, num_heads_, spec_.head_size}}));
  QUIRE_RETURN_IF_ERROR(check_rows("query", args.query, 0, num_tokens));
  QUIRE_RETURN_IF_ERROR(check_device("query", args.query));
  const bool quantised = args.output_scale.has_value() || !args.output_block_scale.empty();
  const DType narrow = quantised ? DType::kFloat8E4M3 : dtype_;
  const DType wide = quantised ? DType::kFloat8E4M3 : DType::kFloat32;
  QUIRE_RETURN_IF_ERROR(check_tensor(args.output, {"output", {narrow, wide}, {kAny, num_heads_, head_size_v}}));
  QUIRE_RETURN_IF_ERROR(check_rows("output", args.output, 0, num_tokens));
  QUIRE_RETURN_IF_ERROR(check_device("output", args.output));
  if (args.output_scale && !(*args.output_scale > 0.0f)) {
    return invalid_argument("output_scale: want > 0, got " + to_string(*args.output_scale));
  }
  if (!args.output_block_scale.empty()) {
    const std::int64_t groups = ceil_div(num_heads_ * head_size_v, kOutputGroup);
    QUIRE_RETURN_IF_ERROR(
        check_tensor(args.output_block_scale, {"output_block_scale", {DType::kFloat32}, {kAny, groups}}));
    QUIRE_RETURN_IF_ERROR(check_rows("output_block_scale", args.output_block_scale, 0, num_tokens));
    QUIRE_RETURN_IF_ERROR(check_device("output_block_scale", args.output_block_scale));
  }
  if (args.lse.empty()) return {};
  QUIRE_RETURN_IF_ERROR(check_tensor(args.lse, {"lse", {DType::kFloat32}, {num_heads_, kAny}}));
  QUIRE_RETURN_IF_ERROR(check_device("lse", args.lse));
  return check_rows("lse", args.lse, 1, num_tokens);
}

// What follows from the layer and the batch alone: lengths, shapes and terms, no tensor.
AttentionArgs PagedImpl::batch_args(const AttentionMetadata& metadata) const {
  const bool on_host = metadata.query_start_loc_device.empty();
  const std::int32_t streams = spec_.format == KVCacheFormat::kDifferential ? 2 : 1;
  AttentionArgs args{
      .query_dtype = dtype_,
      .output_dtype = dtype_,
      .num_seqs = metadata.num_reqs,
      .num_tokens = metadata.num_actual_tokens,
      .num_q_heads = num_heads_,
      .query_start_loc = on_host ? metadata.query_start_loc.data() : metadata.query_start_loc_device.as<std::int32_t>(),
      .seq_lens = on_host ? metadata.seq_lens.data() : metadata.seq_lens_device.as<std::int32_t>(),
      .kv = {.dtype = kv_storage_dtype(spec_.cache_dtype, dtype_),
             .num_streams = streams,
             .num_kv_heads = spec_.num_kv_heads / streams,
             .head_size = spec_.head_size,
             .head_size_v = spec_.head_size_v,
             .block_size = spec_.block_size},
      .variant = variant_};
  metadata.bind_batch_terms(args.variant);
  finish_args(args);
  return args;
}

Status PagedImpl::set_tensors(const AttentionLayer& layer, const ForwardArgs& forward, AttentionArgs& args) const {
  const AttentionMetadata& metadata = *forward.metadata;
  if (reads_cache()) {
    QUIRE_ASSIGN_OR_RETURN(args.kv, bind_cache(layer, forward.kv_cache));
    args.kv.block_table = metadata.block_table.as<std::int32_t>();
    args.kv.block_table_stride = metadata.block_table.stride(0);
  } else {
    QUIRE_ASSIGN_OR_RETURN(args.kv, bind_own_keys(forward, metadata));
    args.kv.kv_start = args.query_start_loc;
  }
  args.query = forward.query.data;
  args.query_dtype = forward.query.dtype;
  args.query_token_stride = forward.query.stride(0);
  args.query_head_stride = forward.query.stride(1);
  if (is_float8(args.query_dtype)) args.query_scale = layer.q_scale;
  args.output = forward.output.data;
  args.output_dtype = forward.output.dtype;
  args.output_token_stride = forward.output.stride(0);
  args.output_head_stride = forward.output.stride(1);
  args.output_scale = forward.output_scale.value_or(0.0f);
  args.output_block_scale = forward.output_block_scale.as<float>();
  args.output_block_scale_stride = forward.output_block_scale.stride(0);
  args.lse = forward.lse.as<float>();
  args.lse_head_stride = forward.lse.stride(0);
  return {};
}

// Zeros of any dtype are zero bytes.
Status PagedImpl::fill_with_zeros(const TensorView& output) const {
  QUIRE_RETURN_IF_ERROR(check_tensor(
      output,
      {"output", {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat8E4M3}, {kAny, kAny, kAny}}));
  QUIRE_RETURN_IF_ERROR(check_device("output", output));
  if (on_cuda()) return cuda::fill_with_zeros(output, runtime_);
  const std::int64_t bytes = dtype_bytes(output.dtype);
  for (std::int64_t token = 0; token < output.size(0); ++token) {
    for (std::int64_t head = 0; head < output.size(1); ++head) {
      std::byte* row = output.as<std::byte>() + (token * output.stride(0) + head * output.stride(1)) * bytes;
      std::memset(row, 0, static_cast<std::size_t>(output.size(2) * bytes));
    }
  }
  return {};
}

// Kernels on a device are chosen by the alignment of queries and of the cache too, which the layer has not seen yet:
// the largest scratch over what they may be.
std::size_t PagedImpl::workspace_bytes(const AttentionMetadata& metadata, OutputScales scales) const {
  AttentionArgs args = batch_args(metadata);
  // Kernels look whether there are tensors and scales and how they are aligned, not at them.
  alignas(64) float present = 0.0f;
  args.query = args.output = &present;
  args.kv.block_table = &metadata.num_reqs;
  for (int stream = 0; stream < args.kv.num_streams; ++stream) {
    args.kv.key[stream].data = args.kv.value[stream].data = &present;
  }
  if (scales == OutputScales::kBlocks) args.output_block_scale = &present;
  if (is_per_token_head(spec_.cache_dtype)) args.kv.value[0].scales = args.kv.value[1].scales = &present;
  std::size_t most = 0;
  for (const DType query_dtype : {dtype_, DType::kFloat8E4M3}) {
    for (const DType output_dtype : {dtype_, DType::kFloat32, DType::kFloat8E4M3}) {
      args.query_dtype = query_dtype;
      args.output_dtype = output_dtype;
      most = std::max(most, attention_workspace_bytes(args, metadata.plan, runtime_));
      if (!on_cuda()) continue;
      for (std::int64_t* stride : {&args.query_head_stride, &args.kv.key[0].head_stride}) {
        *stride = 1;
        most = std::max(most, attention_workspace_bytes(args, metadata.plan, runtime_));
        *stride = 0;
      }
    }
  }
  return most;
}

Status PagedImpl::forward(const AttentionLayer& layer, const ForwardArgs& forward) const {
  if (forward.metadata == nullptr) return fill_with_zeros(forward.output);
  const AttentionMetadata& metadata = *forward.metadata;
  QUIRE_RETURN_IF_ERROR(check_metadata(metadata));
  QUIRE_RETURN_IF_ERROR(check_query_and_output(forward, metadata.num_actual_tokens));
  if (metadata.num_actual_tokens == 0) return {};
  AttentionArgs args = batch_args(metadata);
  QUIRE_RETURN_IF_ERROR(set_tensors(layer, forward, args));
  return paged_attention(args, metadata.plan, runtime_, forward.workspace);
}

}  // namespace quire::backends
