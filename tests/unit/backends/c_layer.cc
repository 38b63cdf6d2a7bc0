// From a LayerRun to the C API's structs, and attention through them.
#include "unit/backends/c_layer.h"

#include <gtest/gtest.h>

namespace quire::test {
namespace {

// From the nodes' parents, so that a tree in any order stays as it is.
COwned<QuireTree> tree_to_c(const TokenTree& tree) {
  std::vector<std::int32_t> parents;
  for (std::int32_t node = 1; node < tree.size(); ++node) parents.push_back(tree.parent(node));
  QuireTree* made = nullptr;
  EXPECT_EQ(quire_tree_from_parents(parents.data(), parents.size(), &made), QUIRE_OK) << quire_last_error();
  return COwned<QuireTree>(made);
}

const float* or_null(std::span<const float> values) { return values.empty() ? nullptr : values.data(); }

void set_terms(const ImplConfig& from, QuireLayerConfig& to) {
  to.scale = from.scale;
  to.logits_soft_cap = from.logits_soft_cap.value_or(0.0f);
  to.sliding_window = from.sliding_window.value_or(0);
  to.chunk = from.chunk;
  to.chunk_lookback = from.chunk_lookback;
  to.alibi_slopes = or_null(from.alibi_slopes);
  to.alibi = static_cast<std::int32_t>(from.alibi);
  to.sinks = or_null(from.sinks);
  if (!from.differential) return;
  to.layer_idx = from.differential->layer_idx;
  to.lambda_q1 = or_null(from.differential->lambda_q1);
  to.lambda_k1 = or_null(from.differential->lambda_k1);
  to.lambda_q2 = or_null(from.differential->lambda_q2);
  to.lambda_k2 = or_null(from.differential->lambda_k2);
  to.subln_weight = or_null(from.differential->subln_weight);
  to.subln_eps = from.differential->subln_eps;
}

}  // namespace

QuireTensor to_c(const TensorView& view) {
  QuireTensor tensor{};
  tensor.data = view.data;
  tensor.device_type = static_cast<std::int32_t>(view.device.type);
  tensor.device_index = view.device.index;
  tensor.dtype = static_cast<std::int32_t>(view.dtype);
  tensor.rank = view.rank;
  std::copy(view.shape.begin(), view.shape.end(), tensor.shape);
  std::copy(view.strides.begin(), view.strides.end(), tensor.strides);
  return tensor;
}

QuireLayerConfig small_layer() {
  QuireLayerConfig config;
  EXPECT_EQ(quire_layer_config_init(&config), QUIRE_OK);
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_size = 16;
  config.dtype = QUIRE_FLOAT32;
  config.scale = 0.25f;
  return config;
}

void expect_error(int status, int code, const std::string& message) {
  EXPECT_EQ(status, code);
  EXPECT_NE(std::string(quire_last_error()).find(message), std::string::npos) << quire_last_error();
}

CLayer::CLayer(const LayerRun& run)
    : run_(run), block_table_(to_c(run.common.block_table_tensor)), slot_mapping_(to_c(run.common.slot_mapping)) {
  const ImplConfig& from = run.setup().config;
  EXPECT_EQ(quire_layer_config_init(&config), QUIRE_OK);
  config.num_heads = from.num_heads;
  config.num_kv_heads = from.num_kv_heads;
  config.head_size = from.head_size;
  config.head_size_v = from.head_size_v;
  config.dtype = static_cast<std::int32_t>(from.dtype);
  config.kv_cache_dtype = static_cast<std::int32_t>(from.kv_cache_dtype);
  config.scale_placement = static_cast<std::int32_t>(from.scale_placement);
  config.layout = static_cast<std::int32_t>(from.layout);
  config.attn_type = static_cast<std::int32_t>(from.attn_type);
  config.block_size = from.block_size;
  config.num_blocks = run.metadata.num_blocks;
  config.runtime = {static_cast<std::int32_t>(from.runtime.backplane), static_cast<std::int32_t>(from.runtime.isa),
                    from.runtime.num_threads, from.runtime.stream, static_cast<std::int32_t>(from.runtime.splits)};
  set_terms(from, config);
  if (from.differential && from.differential->lambda_init) {
    lambda_init_ = *from.differential->lambda_init;
    config.lambda_init = &lambda_init_;
  }

  EXPECT_EQ(quire_batch_init(&batch), QUIRE_OK);
  const CommonAttentionMetadata& common = run.common;
  batch.num_reqs = common.num_reqs;
  batch.query_start_loc = common.query_start_loc_cpu.data();
  batch.seq_lens = common.seq_lens_cpu.data();
  if (!common.encoder_seq_lens_cpu.empty()) batch.encoder_seq_lens = common.encoder_seq_lens_cpu.data();
  batch.block_table = &block_table_;
  batch.slot_mapping = &slot_mapping_;
  batch.not_causal = common.causal ? 0 : 1;
  for (const MmRange& range : common.mm_ranges) ranges_.push_back({range.start, range.end});
  if (!common.mm_range_start.empty()) {
    batch.mm_ranges = ranges_.data();
    batch.mm_range_start = common.mm_range_start.data();
  }
  for (const TokenTree* tree : common.trees) {
    trees_.push_back(tree == nullptr ? nullptr : tree_to_c(*tree));
    tree_pointers_.push_back(trees_.back().get());
  }
  if (!common.trees.empty()) batch.trees = tree_pointers_.data();
  if (run.setup().tree) {
    trees_.push_back(tree_to_c(*run.setup().tree));
    config.tree = trees_.back().get();
  }
}

int CLayer::make() {
  QuireBuilder* made_builder = nullptr;
  QuireMetadata* made_metadata = nullptr;
  QuireImpl* made_impl = nullptr;
  int status = quire_find_backend(std::string(run_.setup().backend).c_str(), &backend);
  if (status == QUIRE_OK) status = quire_builder_create(backend, &config, &made_builder);
  builder.reset(made_builder);
  if (status == QUIRE_OK) {
    const std::optional<std::int32_t> level = run_.setup().draft_index;
    status = level ? quire_build_for_drafting(made_builder, &batch, *level, &made_metadata)
                   : quire_build(made_builder, &batch, &made_metadata);
  }
  metadata.reset(made_metadata);
  if (status == QUIRE_OK) status = quire_impl_create(backend, &config, &made_impl);
  impl.reset(made_impl);
  return status;
}

int CLayer::forward() {
  output.assign(run_.output.size(), 99.0f);
  lse.assign(run_.lse.size(), 99.0f);
  ForwardArgs host = run_.args;
  host.output.data = output.data();
  host.lse.data = lse.data();
  DeviceCopies copies(run_.setup().config.runtime);
  const QuireTensor query = to_c(copies.place(host.query)), key = to_c(copies.place(host.key)),
                    value = to_c(copies.place(host.value)), cache = to_c(copies.place(host.kv_cache)),
                    out = to_c(copies.place(host.output)), out_lse = to_c(copies.place(host.lse)),
                    k_scales = to_c(copies.place(run_.layer.kv_scales.k_scale_cache)),
                    v_scales = to_c(copies.place(run_.layer.kv_scales.v_scale_cache));
  QuireScales scales;
  EXPECT_EQ(quire_scales_init(&scales), QUIRE_OK);
  scales.q_scale = run_.layer.q_scale;
  scales.k_scale = run_.layer.kv_scales.k_scale;
  scales.v_scale = run_.layer.kv_scales.v_scale;
  scales.k_scale_cache = &k_scales;
  scales.v_scale_cache = &v_scales;
  QuireForward args;
  EXPECT_EQ(quire_forward_init(&args), QUIRE_OK);
  args.query = &query;
  args.key = &key;
  args.value = &value;
  args.kv_cache = &cache;
  args.output = &out;
  args.lse = &out_lse;
  EXPECT_EQ(quire_workspace_bytes(impl.get(), metadata.get(), 0, &args.workspace_bytes), QUIRE_OK);
  args.workspace = copies.scratch(args.workspace_bytes).data();
  const int status = quire_forward(impl.get(), &scales, metadata.get(), &args);
  EXPECT_TRUE(copies.fetch().ok());
  return status;
}

}  // namespace quire::test
