// The C API's batches, configurations, updates and moves: what they tell, and errors that name what is wrong.
#include <gtest/gtest.h>

#include "quire/tree_draft.h"
#include "unit/backends/c_layer.h"

namespace quire::test {
namespace {

// A batch of two requests and a layer that takes everything a batch may have.
struct SmallBatch {
  std::vector<std::int32_t> starts = {0, 3, 4}, lens = {11, 9}, blocks = {3, 5}, first_range = {0, 1, 1};
  std::vector<QuireMmRange> ranges = {{2, 9}};
  QuireTensor table{};
  QuireBatch batch{};
  COwned<QuireBuilder> builder;

  explicit SmallBatch(const char* name, std::int32_t speculative = 0) {
    QuireLayerConfig config = small_layer();
    config.num_blocks = 8;
    config.num_speculative_tokens = speculative;
    const QuireBackend* backend = nullptr;
    EXPECT_EQ(quire_find_backend(name, &backend), QUIRE_OK);
    QuireBuilder* made = nullptr;
    EXPECT_EQ(quire_builder_create(backend, &config, &made), QUIRE_OK) << quire_last_error();
    builder.reset(made);
    const std::int64_t shape[2] = {2, 1};
    EXPECT_EQ(quire_tensor_init(&table, blocks.data(), QUIRE_INT32, shape, 2), QUIRE_OK);
    EXPECT_EQ(quire_batch_init(&batch), QUIRE_OK);
    batch.num_reqs = 2;
    batch.query_start_loc = starts.data();
    batch.seq_lens = lens.data();
    batch.block_table = &table;
  }
  int build(COwned<QuireMetadata>& metadata) {
    QuireMetadata* made = nullptr;
    const int status = quire_build(builder.get(), &batch, &made);
    metadata.reset(made);
    return status;
  }
  int build() {
    COwned<QuireMetadata> unused;
    return build(unused);
  }
};

TEST(CApi, WrongBatchesAreNamed) {
  SmallBatch good("TRITON_ATTN");
  good.batch.mm_ranges = good.ranges.data();
  good.batch.mm_range_start = good.first_range.data();
  ASSERT_EQ(good.build(), QUIRE_OK) << quire_last_error();
  good.batch.mm_range_start = nullptr;
  expect_error(good.build(), QUIRE_INVALID_ARGUMENT, "mm_range_start: want a pointer");
  good.batch.mm_range_start = good.first_range.data();
  good.batch.mm_ranges = nullptr;
  expect_error(good.build(), QUIRE_INVALID_ARGUMENT, "mm_ranges: want a pointer");
  good.batch.mm_ranges = good.ranges.data();
  good.first_range = {0, 2, 1};
  expect_error(good.build(), QUIRE_INVALID_ARGUMENT, "mm_range_start");
  good.first_range = {0, 1, -1};
  expect_error(good.build(), QUIRE_INVALID_ARGUMENT, "mm_range_start[2]: want >= 0, got -1");
  good.first_range = {0, 1, 1};
  good.ranges[0].start = -2;
  expect_error(good.build(), QUIRE_INVALID_ARGUMENT, "mm_ranges");

  SmallBatch trees("TREE_ATTN", 2);
  QuireTree* chain = nullptr;
  ASSERT_EQ(quire_tree_chain(2, &chain), QUIRE_OK);
  const COwned<QuireTree> owner(chain);
  const QuireTree* each[] = {chain, nullptr};
  trees.batch.trees = each;
  ASSERT_EQ(trees.build(), QUIRE_OK) << quire_last_error();
  std::swap(each[0], each[1]);
  expect_error(trees.build(), QUIRE_INVALID_ARGUMENT, "trees");
  SmallBatch plain("XFORMERS");
  plain.batch.trees = each;
  expect_error(plain.build(), QUIRE_UNSUPPORTED, "trees: not supported by XFORMERS");

  SmallBatch lengths("XFORMERS");
  lengths.batch.max_query_len = 1;
  expect_error(lengths.build(), QUIRE_INVALID_ARGUMENT, "max_query_len");
  lengths.batch.max_query_len = 0;
  lengths.batch.max_seq_len = 3;
  expect_error(lengths.build(), QUIRE_INVALID_ARGUMENT, "max_seq_len");
  lengths.batch.max_seq_len = 100;
  lengths.batch.common_prefix_len = -1;
  expect_error(lengths.build(), QUIRE_INVALID_ARGUMENT, "common_prefix_len");
  lengths.batch.common_prefix_len = 0;
  lengths.batch.query_start_loc_device = &lengths.table;
  expect_error(lengths.build(), QUIRE_INVALID_ARGUMENT, "query_start_loc");
  lengths.batch.query_start_loc_device = nullptr;
  lengths.batch.num_reqs = -1;
  expect_error(lengths.build(), QUIRE_INVALID_ARGUMENT, "num_reqs: want >= 0, got -1");
  expect_error(quire_batch_init(nullptr), QUIRE_INVALID_ARGUMENT, "batch: want a pointer");
}

TEST(CApi, MetadataTellsWhatItHasAndItsParts) {
  SmallBatch batch("TREE_ATTN");
  batch.starts = {0, 1, 4};
  COwned<QuireMetadata> metadata;
  ASSERT_EQ(batch.build(metadata), QUIRE_OK) << quire_last_error();
  QuireMetadataInfo info;
  ASSERT_EQ(quire_metadata_info(metadata.get(), &info), QUIRE_OK);
  EXPECT_EQ(info.num_reqs, 2);
  EXPECT_EQ(info.num_actual_tokens, 4);
  EXPECT_EQ(info.max_query_len, 3);
  EXPECT_EQ(info.max_seq_len, 11);
  EXPECT_EQ(info.num_decodes, 1);
  EXPECT_EQ(info.num_prefills, 1);
  EXPECT_EQ(info.num_prefill_tokens, 3);
  EXPECT_EQ(info.prefills_first, 0);
  const QuireMetadata* part = nullptr;
  ASSERT_EQ(quire_prefill_metadata(metadata.get(), &part), QUIRE_OK);
  ASSERT_EQ(quire_metadata_info(part, &info), QUIRE_OK) << quire_last_error();
  EXPECT_EQ(info.num_reqs, 1);
  EXPECT_EQ(info.num_actual_tokens, 3);
  ASSERT_EQ(quire_decode_metadata(part, &part), QUIRE_OK);
  EXPECT_EQ(part, nullptr);
  expect_error(quire_decode_metadata(nullptr, &part), QUIRE_INVALID_ARGUMENT, "metadata: want a pointer");
  expect_error(quire_metadata_info(metadata.get(), nullptr), QUIRE_INVALID_ARGUMENT, "info: want a pointer");
}

TEST(CApi, PromptsMayBeNamed) {
  SmallBatch batch("DIFFERENTIAL_FLASH_ATTN");
  batch.starts = {0, 1, 2};
  const std::uint8_t prefilling[] = {1, 0};
  for (const bool named : {false, true}) {
    batch.batch.is_prefilling = named ? prefilling : nullptr;
    COwned<QuireMetadata> metadata;
    ASSERT_EQ(batch.build(metadata), QUIRE_OK) << quire_last_error();
    QuireMetadataInfo info;
    ASSERT_EQ(quire_metadata_info(metadata.get(), &info), QUIRE_OK);
    EXPECT_EQ(info.num_prefills, named ? 1 : 0);
    EXPECT_EQ(info.prefills_first, 1);
  }
}

TEST(CApi, BatchesAreReordered) {
  SmallBatch batch("TRITON_ATTN_DIFFKV", 1);
  std::int32_t threshold = 0;
  ASSERT_EQ(quire_reorder_batch_threshold(batch.builder.get(), &threshold), QUIRE_OK);
  EXPECT_EQ(threshold, 2);
  const std::int32_t scheduled[] = {7, 2, 9, 1}, computed[] = {5, 5, 0, 5};
  const QuireReorder order{4, scheduled, computed};
  QuireSwap swaps[4] = {};
  std::size_t count = 0;
  ASSERT_EQ(quire_reorder_batch(batch.builder.get(), &order, swaps, 4, &count), QUIRE_OK) << quire_last_error();
  BuilderConfig config;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_size = 16;
  config.num_speculative_tokens = 1;
  const auto own = find_backend("TRITON_ATTN_DIFFKV").value()->make_builder(config).value();
  const auto want = own->reorder_batch({.num_scheduled_tokens = scheduled, .num_computed_tokens = computed});
  ASSERT_EQ(count, want.size());
  ASSERT_GT(count, 0u);
  for (std::size_t i = 0; i < count; ++i) {
    EXPECT_EQ(swaps[i].first, want[i].first);
    EXPECT_EQ(swaps[i].second, want[i].second);
  }
  const QuireReorder negative{-1, scheduled, computed}, empty{4, nullptr, computed};
  expect_error(quire_reorder_batch(batch.builder.get(), &negative, swaps, 4, &count), QUIRE_INVALID_ARGUMENT,
               "num_reqs: want >= 0, got -1");
  expect_error(quire_reorder_batch(batch.builder.get(), &empty, swaps, 4, &count), QUIRE_INVALID_ARGUMENT,
               "num_scheduled_tokens: want a pointer");
  expect_error(quire_reorder_batch(batch.builder.get(), &order, nullptr, 4, &count), QUIRE_INVALID_ARGUMENT,
               "swaps: want a pointer");
}

TEST(CApi, SlotsFollowTheBlockTable) {
  SmallBatch batch("TRITON_ATTN");
  QuireLayerConfig config = small_layer();
  config.num_blocks = 8;
  std::vector<std::int64_t> slots(6, 77);
  ASSERT_EQ(quire_compute_slot_mapping(&config, &batch.batch, slots.data(), slots.size()), QUIRE_OK)
      << quire_last_error();
  EXPECT_EQ(slots, (std::vector<std::int64_t>{56, 57, 58, 88, -1, -1}));
  batch.blocks[1] = 8;
  expect_error(quire_compute_slot_mapping(&config, &batch.batch, slots.data(), slots.size()), QUIRE_OUT_OF_RANGE,
               "block_table");
  expect_error(quire_compute_slot_mapping(&config, &batch.batch, nullptr, 6), QUIRE_INVALID_ARGUMENT,
               "slots: want a pointer");
}

TEST(CApi, DraftLevelsAreThoseOfCpp) {
  const TokenTree own = TokenTree::parse("[(0,), (1,), (0, 0), (0, 1), (1, 0)]").value();
  QuireTree* tree = nullptr;
  ASSERT_EQ(quire_tree_parse("[(0,), (1,), (0, 0), (0, 1), (1, 0)]", &tree), QUIRE_OK);
  const COwned<QuireTree> owner(tree);
  QuireLayerConfig config = small_layer();
  config.num_blocks = 8;
  std::vector<std::int32_t> blocks = {3, 5, 1, 2}, starts(3, 77), lens(2, 77);
  std::vector<std::int64_t> roots = {14, 30}, positions(4, 77), slots(4, 77);
  const std::int64_t shape[2] = {2, 2};
  QuireTensor table;
  ASSERT_EQ(quire_tensor_init(&table, blocks.data(), QUIRE_INT32, shape, 2), QUIRE_OK);
  const DraftLevel want = make_draft_level({.tree = &own,
                                            .level = 0,
                                            .root_positions = roots,
                                            .block_table = make_tensor(blocks.data(), DType::kInt32, {2, 2}).value(),
                                            .block_size = 16,
                                            .num_blocks = 8,
                                            .max_model_len = 32})
                              .value();
  QuireDraftLevel level{};
  level.tree = tree;
  level.num_reqs = 2;
  level.root_positions = roots.data();
  level.block_table = &table;
  level.max_model_len = 32;
  level.query_start_loc = starts.data();
  level.seq_lens = lens.data();
  level.positions = positions.data();
  level.slot_mapping = slots.data();
  level.capacity = 3;
  expect_error(quire_make_draft_level(&config, &level), QUIRE_RESOURCE_EXHAUSTED, "capacity: want 4 rows, got 3");
  EXPECT_EQ(positions, std::vector<std::int64_t>(4, 77));
  level.capacity = 4;
  ASSERT_EQ(quire_make_draft_level(&config, &level), QUIRE_OK) << quire_last_error();
  EXPECT_EQ(starts, want.query_start_loc);
  EXPECT_EQ(lens, want.seq_lens);
  EXPECT_EQ(positions, want.positions);
  EXPECT_EQ(slots, want.slot_mapping);
  EXPECT_EQ(slots, (std::vector<std::int64_t>{63, 80, -1, -1}));
  EXPECT_EQ(level.query_len, 2);
  EXPECT_EQ(level.num_new_drafts, want.num_new_drafts);
  EXPECT_EQ(level.max_seq_len, want.max_seq_len);
  level.level = 1;
  expect_error(quire_make_draft_level(&config, &level), QUIRE_OUT_OF_RANGE, "level: want a level that has children");
  level.level = 0;
  level.slot_mapping = nullptr;
  expect_error(quire_make_draft_level(&config, &level), QUIRE_INVALID_ARGUMENT, "slot_mapping: want a pointer");
  level.num_reqs = -1;
  expect_error(quire_make_draft_level(&config, &level), QUIRE_INVALID_ARGUMENT, "num_reqs: want >= 0, got -1");
  level.tree = nullptr;
  expect_error(quire_make_draft_level(&config, &level), QUIRE_INVALID_ARGUMENT, "tree: want a pointer");
}

TEST(CApi, ConfigurationsAreJudgedByEveryField) {
  const QuireBackend* backend = nullptr;
  ASSERT_EQ(quire_find_backend("XFORMERS", &backend), QUIRE_OK);
  using Field = std::int32_t QuireLayerConfig::*;
  const std::pair<Field, const char*> asked[] = {
      {&QuireLayerConfig::use_mm_prefix, "partial multimodal"},
      {&QuireLayerConfig::use_mla, "MLA"},
      {&QuireLayerConfig::use_sparse, "sparse"},
      {&QuireLayerConfig::use_per_head_quant_scales, "per-head"},
      {&QuireLayerConfig::use_non_causal, "non-causal"},
  };
  for (const auto& [field, reason] : asked) {
    QuireLayerConfig config = small_layer();
    ASSERT_EQ(quire_validate(backend, &config), QUIRE_OK) << quire_last_error();
    config.*field = 1;
    expect_error(quire_validate(backend, &config), QUIRE_UNSUPPORTED, reason);
  }
  const std::pair<Field, const char*> ranged[] = {{&QuireLayerConfig::scale_placement, "scale_placement: want 0 to 1"},
                                                  {&QuireLayerConfig::alibi, "alibi: want 0 to 3"},
                                                  {&QuireLayerConfig::layout, "layout: want 0 to 1"}};
  for (const auto& [field, reason] : ranged) {
    QuireLayerConfig config = small_layer();
    config.*field = 7;
    expect_error(quire_validate(backend, &config), QUIRE_INVALID_ARGUMENT, reason);
  }
  QuireLayerConfig config = small_layer();
  config.runtime.splits = 2;
  expect_error(quire_validate(backend, &config), QUIRE_INVALID_ARGUMENT, "runtime.splits: want 0 to 1, got 2");
  config = small_layer();
  config.runtime.backplane = QUIRE_CUDA;
  config.capability_major = 7;
  expect_error(quire_validate(backend, &config), QUIRE_UNSUPPORTED, "compute capability not supported: got 7.0");
}

TEST(CApi, UpdatesNameWhatIsWrong) {
  LayerRun run(LayerSetup{});
  CLayer layer(run);
  ASSERT_EQ(layer.make(), QUIRE_OK) << quire_last_error();
  QuireRopeUpdate args;
  ASSERT_EQ(quire_rope_update_init(&args), QUIRE_OK);
  const auto update = [&] { return quire_rope_and_kv_cache_update(layer.impl.get(), nullptr, &args); };
  expect_error(update(), QUIRE_INVALID_ARGUMENT, "kv_cache: want the cache");
  QuireTensor cache = to_c(run.args.kv_cache);
  args.kv_cache = &cache;
  args.style = 2;
  expect_error(update(), QUIRE_INVALID_ARGUMENT, "style: want 0 to 1, got 2");
  args.style = QUIRE_ROPE_GPTJ;
  expect_error(update(), QUIRE_INVALID_ARGUMENT, "key");
  std::vector<float> rows(2 * 2 * 16, 1.0f), angles(8 * 16, 0.5f);
  std::vector<std::int64_t> positions = {0, 8}, slots = {16, 17};
  const std::int64_t shape[3] = {2, 2, 16}, angle_shape[2] = {8, 16};
  QuireTensor key, position, angle, slot;
  ASSERT_EQ(quire_tensor_init(&key, rows.data(), QUIRE_FLOAT32, shape, 3), QUIRE_OK);
  ASSERT_EQ(quire_tensor_init(&position, positions.data(), QUIRE_INT64, shape, 1), QUIRE_OK);
  ASSERT_EQ(quire_tensor_init(&angle, angles.data(), QUIRE_FLOAT32, angle_shape, 2), QUIRE_OK);
  ASSERT_EQ(quire_tensor_init(&slot, slots.data(), QUIRE_INT64, shape, 1), QUIRE_OK);
  args.key = args.value = &key;
  args.slot_mapping = &slot;
  expect_error(update(), QUIRE_INVALID_ARGUMENT, "rope.cos_sin_cache");
  args.cos_sin_cache = &angle;
  expect_error(update(), QUIRE_INVALID_ARGUMENT, "rope.positions");
  args.positions = &position;
  expect_error(update(), QUIRE_OUT_OF_RANGE, "rope.positions[1]: want [0, 8), got 8");
  cache.device_type = 3;
  expect_error(update(), QUIRE_INVALID_ARGUMENT, "kv_cache: want device type 1 or 2");
  QuireTensor scales = key;
  scales.dtype = 99;
  QuireScales own;
  ASSERT_EQ(quire_scales_init(&own), QUIRE_OK);
  own.v_scale_cache = &scales;
  expect_error(quire_rope_and_kv_cache_update(layer.impl.get(), &own, &args), QUIRE_INVALID_ARGUMENT,
               "v_scale_cache.dtype: want 0 to 8, got 99");
  expect_error(quire_rope_and_kv_cache_update(nullptr, &own, &args), QUIRE_INVALID_ARGUMENT, "impl: want a pointer");
  expect_error(quire_rope_and_kv_cache_update(layer.impl.get(), &own, nullptr), QUIRE_INVALID_ARGUMENT,
               "args: want a pointer");
  EXPECT_EQ(rows, std::vector<float>(rows.size(), 1.0f));
}

TEST(CApi, SeparateScalesAreWanted) {
  LayerSetup setup;
  setup.config.kv_cache_dtype = KVCacheDType::kInt8PerTokenHead;
  setup.config.scale_placement = ScalePlacement::kSeparate;
  LayerRun run(setup);
  ASSERT_TRUE(run.forward().ok());
  CLayer layer(run);
  ASSERT_EQ(layer.make(), QUIRE_OK) << quire_last_error();
  run.layer.kv_scales.v_scale_cache = {};
  expect_error(layer.forward(), QUIRE_INVALID_ARGUMENT, "v_scale_cache");
}

TEST(CApi, MovesNameWhatIsWrong) {
  LayerRun run(LayerSetup{});
  CLayer layer(run);
  ASSERT_EQ(layer.make(), QUIRE_OK) << quire_last_error();
  const QuireTensor tensor = to_c(run.args.kv_cache);
  QuireKVCache cache{layer.backend, &layer.config, &tensor, nullptr};
  const QuireRuntime cpu = layer.config.runtime;
  const QuireBlockPair far[] = {{0, 1000}}, near[] = {{0, 1}};
  expect_error(quire_copy_blocks(&cache, 1, far, 1, &cpu), QUIRE_OUT_OF_RANGE, "1000");
  expect_error(quire_copy_blocks(&cache, 1, nullptr, 1, &cpu), QUIRE_INVALID_ARGUMENT, "pairs: want a pointer");
  expect_error(quire_copy_blocks(nullptr, 1, near, 1, &cpu), QUIRE_INVALID_ARGUMENT, "caches: want a pointer");
  expect_error(quire_copy_blocks(&cache, 1, near, 1, nullptr), QUIRE_INVALID_ARGUMENT, "runtime: want a pointer");
  expect_error(quire_swap_blocks(&cache, nullptr, near, 1, &cpu), QUIRE_INVALID_ARGUMENT,
               "destination: want a pointer");
  expect_error(quire_swap_blocks(&cache, &cache, near, 1, &cpu), QUIRE_INVALID_ARGUMENT, "another cache");
  const QuireSlotPair slots[] = {{0, -1}};
  expect_error(quire_move_tokens(&cache, 1, slots, 1, &cpu), QUIRE_OUT_OF_RANGE, "-1");
  cache.config = nullptr;
  expect_error(quire_reset_kv_scales(&cache, &cpu), QUIRE_INVALID_ARGUMENT, "cache.config: want a pointer");
  const QuireKVCache two[] = {{layer.backend, &layer.config, &tensor, nullptr}, {}};
  expect_error(quire_move_tokens(two, 2, slots, 1, &cpu), QUIRE_INVALID_ARGUMENT, "caches[1].backend: want a pointer");
  QuireMergeStates merge;
  ASSERT_EQ(quire_merge_states_init(&merge), QUIRE_OK);
  expect_error(quire_merge_attn_states(&merge, &cpu), QUIRE_INVALID_ARGUMENT, "output");
}

TEST(CApi, LayersOfOneBuffer) {
  QuireLayerConfig config = small_layer();
  config.num_blocks = 3;
  const QuireBackend* backend = nullptr;
  ASSERT_EQ(quire_find_backend("TRITON_ATTN", &backend), QUIRE_OK);
  std::int64_t bytes = 0, block = 0;
  ASSERT_EQ(quire_kv_cache_bytes(backend, &config, &bytes), QUIRE_OK);
  ASSERT_EQ(quire_kv_block_bytes(backend, &config, &block), QUIRE_OK);
  EXPECT_EQ(bytes, 3 * block);
  std::vector<float> memory(static_cast<std::size_t>(bytes) / 2);
  QuireTensor first, second;
  const QuireLayeredCache front{memory.data(), 2, 0}, back{memory.data(), 2, 1}, behind{memory.data(), 2, 2};
  ASSERT_EQ(quire_view_layered_kv_cache(backend, &config, &front, &first), QUIRE_OK) << quire_last_error();
  ASSERT_EQ(quire_view_layered_kv_cache(backend, &config, &back, &second), QUIRE_OK) << quire_last_error();
  EXPECT_NE(first.data, second.data);
  EXPECT_EQ(first.shape[0], 3);
  EXPECT_EQ(first.strides[0], second.strides[0]);
  EXPECT_NE(quire_view_layered_kv_cache(backend, &config, &behind, &second), QUIRE_OK);
  expect_error(quire_view_layered_kv_cache(backend, &config, nullptr, &second), QUIRE_INVALID_ARGUMENT,
               "layers: want a pointer");
  std::int32_t size = 0;
  ASSERT_EQ(quire_preferred_block_size(backend, 48, &size), QUIRE_OK);
  EXPECT_EQ(size, 48);
}

}  // namespace
}  // namespace quire::test
