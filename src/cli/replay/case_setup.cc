// Translates a case's configuration into backend, builder, metadata and layer.
#include "cli/replay/case_setup.h"

#include <algorithm>
#include <string>
#include <utility>

#include "core/convert.h"

namespace quire::cli {
namespace {

template <class T>
std::span<const T> span_of(const TensorView& tensor) {
  return {tensor.as<const T>(), static_cast<std::size_t>(tensor.empty() ? 0 : tensor.num_elements())};
}

Status set_cache_specs(CaseSetup& setup, const ReplayOptions& options) {
  const CaseConfig& config = setup.file.config;
  KVCacheSpec& spec = setup.file_spec;
  spec.format = setup.backend->kv_cache_format();
  QUIRE_ASSIGN_OR_RETURN(spec.layout, parse_kv_cache_layout(config.kv_cache_layout));
  QUIRE_ASSIGN_OR_RETURN(spec.cache_dtype, parse_kv_cache_dtype(config.kv_cache_dtype));
  spec.model_dtype = setup.file.query.dtype;
  spec.num_blocks = config.num_blocks;
  spec.block_size = config.block_size;
  spec.num_kv_heads = config.num_kv_heads;
  spec.head_size = config.head_size;
  spec.head_size_v = config.head_size_v;
  setup.run_spec = spec;
  setup.run_spec.scales = options.scales;
  // A layout that the backend does not have leaves the case as it is.
  if (options.layout && kv_cache_stride_order(spec.format, *options.layout, false).ok()) {
    setup.run_spec.layout = *options.layout;
  }
  return {};
}

void set_mm_ranges(CaseSetup& setup) {
  const TensorView& ranges = setup.file.mm_prefix_range;
  if (!ranges) return;
  const auto* values = ranges.as<const std::int32_t>();
  setup.mm_range_start.push_back(0);
  for (std::int64_t seq = 0; seq < ranges.size(0); ++seq) {
    for (std::int64_t range = 0; range < ranges.size(1); ++range, values += 2) {
      setup.mm_ranges.push_back({values[0], values[1]});
    }
    setup.mm_range_start.push_back(static_cast<std::int32_t>(setup.mm_ranges.size()));
  }
}

CommonAttentionMetadata common_metadata(const CaseSetup& setup) {
  const AttentionCase& file = setup.file;
  CommonAttentionMetadata common;
  common.query_start_loc_cpu = span_of<std::int32_t>(file.query_start_loc);
  common.seq_lens_cpu = span_of<std::int32_t>(file.seq_lens);
  common.num_reqs = static_cast<std::int32_t>(file.seq_lens.size(0));
  common.num_actual_tokens = file.config.num_actual_tokens;
  for (std::size_t i = 0; i < common.seq_lens_cpu.size(); ++i) {
    const std::int64_t query_len = std::int64_t{common.query_start_loc_cpu[i + 1]} - common.query_start_loc_cpu[i];
    common.max_query_len = static_cast<std::int32_t>(std::max<std::int64_t>(common.max_query_len, query_len));
    common.max_seq_len = std::max(common.max_seq_len, common.seq_lens_cpu[i]);
  }
  common.block_table_tensor = setup.mirror.at(file.block_table);
  common.slot_mapping = setup.mirror.at(file.slot_mapping);
  common.causal = setup.attn_type == AttentionType::kDecoder;
  common.mm_ranges = setup.mm_ranges;
  common.mm_range_start = setup.mm_range_start;
  return common;
}

// The drafting level whose queries are the first `draft_query_len` drafts of the tree; 0 is the root level.
Result<std::int32_t> drafting_level(const TokenTree& tree, std::int32_t draft_query_len) {
  std::int32_t drafts = 0;
  std::int32_t level = 0;
  for (const std::int32_t count : tree.depth_counts()) {
    if (drafts >= draft_query_len) break;
    drafts += count;
    ++level;
  }
  if (drafts != draft_query_len) {
    return data_loss("config.draft_query_len: want the drafts of whole levels, got " + std::to_string(draft_query_len));
  }
  return level;
}

Status build_metadata(CaseSetup& setup, const ReplayOptions& options) {
  const CaseConfig& config = setup.file.config;
  BuilderConfig builder_config;
  builder_config.num_heads = config.num_heads;
  builder_config.num_kv_heads = config.num_kv_heads;
  builder_config.head_size = config.head_size;
  builder_config.head_size_v = config.head_size_v;
  builder_config.block_size = std::max(config.block_size, 16);  // encoder cases have no blocks
  builder_config.num_blocks = config.num_blocks;
  builder_config.sliding_window = config.sliding_window;
  builder_config.attn_type = setup.attn_type;
  builder_config.tree = setup.tree;
  builder_config.runtime = options.runtime;
  QUIRE_ASSIGN_OR_RETURN(const auto builder, setup.backend->make_builder(builder_config));
  const CommonAttentionMetadata common = common_metadata(setup);
  if (config.draft_query_len && setup.tree) {
    QUIRE_ASSIGN_OR_RETURN(const std::int32_t level, drafting_level(*setup.tree, *config.draft_query_len));
    QUIRE_ASSIGN_OR_RETURN(setup.metadata, builder->build_for_drafting(common, level));
  } else {
    QUIRE_ASSIGN_OR_RETURN(setup.metadata, builder->build(0, common));
  }
  return {};
}

Status build_impl(CaseSetup& setup, const ReplayOptions& options) {
  const AttentionCase& file = setup.file;
  const CaseConfig& config = file.config;
  ImplConfig impl;
  impl.num_heads = config.num_heads;
  impl.head_size = config.head_size;
  impl.head_size_v = config.head_size_v;
  impl.scale = static_cast<float>(config.scale);
  impl.num_kv_heads = config.num_kv_heads;
  impl.alibi_slopes = span_of<float>(file.alibi_slopes);
  impl.alibi = config.use_alibi_sqrt ? AlibiKind::kSqrt : AlibiKind::kLinear;
  impl.sliding_window = config.sliding_window;
  impl.kv_cache_dtype = setup.run_spec.cache_dtype;
  if (config.logits_soft_cap) impl.logits_soft_cap = static_cast<float>(*config.logits_soft_cap);
  impl.attn_type = setup.attn_type;
  if (config.kv_sharing) impl.kv_sharing_target_layer_name = "the layer that filled the cache";
  impl.sinks = setup.sinks;
  if (file.lambda_q1) {
    DifferentialConfig& differential = impl.differential.emplace();
    differential.lambda_init = config.lambda_init;
    differential.lambda_q1 = span_of<float>(file.lambda_q1);
    differential.lambda_k1 = span_of<float>(file.lambda_k1);
    differential.lambda_q2 = span_of<float>(file.lambda_q2);
    differential.lambda_k2 = span_of<float>(file.lambda_k2);
    differential.subln_weight = span_of<float>(file.subln_weight);
    differential.subln_eps = static_cast<float>(config.subln_eps);
  }
  impl.dtype = file.query.dtype;
  impl.layout = setup.run_spec.layout;
  impl.scale_placement = setup.run_spec.scales;
  impl.block_size = std::max(config.block_size, 16);
  impl.runtime = options.runtime;
  QUIRE_ASSIGN_OR_RETURN(setup.impl, setup.backend->make_impl(impl));
  return {};
}

}  // namespace

Result<TensorView> CaseSetup::view_file_cache(const TensorView& tensor, const char* name) const {
  QUIRE_ASSIGN_OR_RETURN(const std::vector<std::int64_t> logical, backend->kv_cache_shape(file_spec));
  QUIRE_ASSIGN_OR_RETURN(const TensorView view, view_kv_cache(file_spec, tensor.data));
  std::vector<int> order(logical.size());
  for (std::size_t dim = 0; dim < order.size(); ++dim) order[dim] = static_cast<int>(dim);
  if (const auto stride_order = kv_cache_stride_order(file_spec.format, file_spec.layout, false); stride_order.ok()) {
    order = *stride_order;
  }
  bool same = tensor.rank == static_cast<std::int32_t>(logical.size()) && tensor.dtype == view.dtype;
  for (std::size_t dim = 0; same && dim < order.size(); ++dim) {
    same = tensor.shape[dim] == logical[static_cast<std::size_t>(order[dim])];
  }
  if (!same) {
    return data_loss(std::string(name) + ": want " + std::string(dtype_name(view.dtype)) + " of the logical shape " +
                     shape_string(view) + ", got " + std::string(dtype_name(tensor.dtype)) + " " +
                     shape_string(tensor));
  }
  return view;
}

KVScales CaseSetup::tensor_scales() const {
  KVScales scales;
  if (file.k_scale) scales.k_scale = *file.k_scale.as<const float>();
  if (file.v_scale) scales.v_scale = *file.v_scale.as<const float>();
  return scales;
}

AttentionLayer CaseSetup::layer(const CacheImage& cache) const {
  AttentionLayer out;
  out.kv_scales = cache.scales();
  out.kv_scales.k_scale_cache = mirror.at(cache.scales().k_scale_cache);
  out.kv_scales.v_scale_cache = mirror.at(cache.scales().v_scale_cache);
  return out;
}

Result<std::unique_ptr<CaseSetup>> make_case_setup(const AttentionCase& file, const ReplayOptions& options) {
  auto setup = std::make_unique<CaseSetup>(file, options.runtime);
  for (const TensorView& tensor : {file.query, file.key, file.value, file.block_table, file.slot_mapping}) {
    QUIRE_RETURN_IF_ERROR(setup->mirror.add(tensor));
  }
  QUIRE_ASSIGN_OR_RETURN(setup->backend, find_backend(file.backend));
  QUIRE_ASSIGN_OR_RETURN(setup->attn_type, parse_attention_type(file.config.attn_type));
  setup->has_cache = !file.kv_cache.empty();
  if (setup->has_cache) QUIRE_RETURN_IF_ERROR(set_cache_specs(*setup, options));
  if (!file.config.tree_choices.empty()) {
    QUIRE_ASSIGN_OR_RETURN(setup->tree, TokenTree::from_choices(file.config.tree_choices));
  }
  for (std::int64_t i = 0; file.sinks && i < file.sinks.num_elements(); ++i) {
    setup->sinks.push_back(load_as_float(file.sinks.data, file.sinks.dtype, i));
  }
  set_mm_ranges(*setup);
  QUIRE_RETURN_IF_ERROR(build_metadata(*setup, options));
  QUIRE_RETURN_IF_ERROR(build_impl(*setup, options));
  return setup;
}

}  // namespace quire::cli
