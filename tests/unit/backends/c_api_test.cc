// The C API: a layer from configuration to output with the same bits as in C++, and errors that C can read.
#include "quire/c_api.h"

#include <gtest/gtest.h>

#include <thread>

#include "unit/backends/c_layer.h"

namespace quire::test {
namespace {

TEST(CApi, ALayerFromEndToEnd) {
  LayerSetup setup;
  setup.config.runtime = test_runtimes().back();
  setup.config.sliding_window = 9;
  LayerRun run(setup);
  ASSERT_TRUE(run.forward().ok());
  const std::vector<float> want = run.output;

  QuireLayerConfig config = small_layer();
  config.num_blocks = run.args.kv_cache.size(0);
  config.sliding_window = 9;
  const QuireBackend* backend = nullptr;
  ASSERT_EQ(quire_select_backend(&config, nullptr, &backend), QUIRE_OK) << quire_last_error();
  EXPECT_STREQ(quire_backend_name(backend), "TRITON_ATTN");
  ASSERT_EQ(quire_validate(backend, &config), QUIRE_OK);
  std::int64_t bytes = 0;
  ASSERT_EQ(quire_kv_cache_bytes(backend, &config, &bytes), QUIRE_OK);
  QuireTensor cache;
  ASSERT_EQ(quire_view_kv_cache(backend, &config, run.args.kv_cache.data, &cache), QUIRE_OK) << quire_last_error();
  EXPECT_EQ(bytes, run.args.kv_cache.num_elements() * 4);

  const QuireTensor table = to_c(run.common.block_table_tensor), slots = to_c(run.common.slot_mapping);
  QuireBatch batch{};
  batch.num_reqs = run.common.num_reqs;
  batch.query_start_loc = run.common.query_start_loc_cpu.data();
  batch.seq_lens = run.common.seq_lens_cpu.data();
  batch.block_table = &table;
  batch.slot_mapping = &slots;
  QuireBuilder* builder = nullptr;
  QuireMetadata* metadata = nullptr;
  QuireImpl* impl = nullptr;
  ASSERT_EQ(quire_builder_create(backend, &config, &builder), QUIRE_OK) << quire_last_error();
  ASSERT_EQ(quire_build(builder, &batch, &metadata), QUIRE_OK) << quire_last_error();
  ASSERT_EQ(quire_impl_create(backend, &config, &impl), QUIRE_OK) << quire_last_error();

  std::vector<float> got(want.size());
  const QuireTensor query = to_c(run.args.query);
  QuireTensor output;
  const std::int64_t shape[3] = {run.num_tokens(), 4, 16};
  ASSERT_EQ(quire_tensor_init(&output, got.data(), QUIRE_FLOAT32, shape, 3), QUIRE_OK);
  QuireForward args;
  ASSERT_EQ(quire_forward_init(&args), QUIRE_OK);
  args.query = &query;
  args.kv_cache = &cache;
  args.output = &output;
  ASSERT_EQ(quire_workspace_bytes(impl, metadata, 0, &args.workspace_bytes), QUIRE_OK);
  std::vector<std::byte> workspace(args.workspace_bytes);
  args.workspace = workspace.data();
  QuireScales scales;
  ASSERT_EQ(quire_scales_init(&scales), QUIRE_OK);
  ASSERT_EQ(quire_forward(impl, &scales, metadata, &args), QUIRE_OK) << quire_last_error();
  EXPECT_EQ(got, want);
  ASSERT_EQ(quire_forward(impl, nullptr, nullptr, &args), QUIRE_OK);
  EXPECT_EQ(got, std::vector<float>(want.size(), 0.0f));

  quire_metadata_destroy(metadata);
  quire_impl_destroy(impl);
  quire_builder_destroy(builder);
}

TEST(CApi, CacheUpdatesStore) {
  QuireLayerConfig config = small_layer();
  config.num_blocks = 4;
  const QuireBackend* backend = nullptr;
  ASSERT_EQ(quire_find_backend("XFORMERS_VLLM_V1", &backend), QUIRE_OK);
  std::int64_t bytes = 0;
  ASSERT_EQ(quire_kv_cache_bytes(backend, &config, &bytes), QUIRE_OK);
  std::vector<float> memory(static_cast<std::size_t>(bytes) / 4), rows(2 * 2 * 16, 3.0f);
  std::vector<std::int64_t> slots = {17, -1};
  QuireTensor cache, key, slot_mapping;
  ASSERT_EQ(quire_view_kv_cache(backend, &config, memory.data(), &cache), QUIRE_OK);
  const std::int64_t shape[3] = {2, 2, 16};
  ASSERT_EQ(quire_tensor_init(&key, rows.data(), QUIRE_FLOAT32, shape, 3), QUIRE_OK);
  ASSERT_EQ(quire_tensor_init(&slot_mapping, slots.data(), QUIRE_INT64, shape, 1), QUIRE_OK);
  QuireImpl* impl = nullptr;
  ASSERT_EQ(quire_impl_create(backend, &config, &impl), QUIRE_OK) << quire_last_error();
  ASSERT_EQ(quire_kv_cache_update(impl, nullptr, &key, &key, &cache, &slot_mapping), QUIRE_OK) << quire_last_error();
  EXPECT_EQ(std::count(memory.begin(), memory.end(), 3.0f), 2 * 2 * 16);
  EXPECT_EQ(memory[17 * 2 * 16], 3.0f);
  quire_impl_destroy(impl);
}

TEST(CApi, TreesDifferentialLayersAndDrafts) {
  QuireLayerConfig config = small_layer();
  config.num_blocks = 8;
  QuireTree* tree = nullptr;
  ASSERT_EQ(quire_tree_parse("[(0,), (1,), (0, 0)]", &tree), QUIRE_OK) << quire_last_error();
  config.tree = tree;
  const QuireBackend* backend = nullptr;
  ASSERT_EQ(quire_find_backend("TREE_ATTN", &backend), QUIRE_OK);
  QuireBuilder* builder = nullptr;
  ASSERT_EQ(quire_builder_create(backend, &config, &builder), QUIRE_OK) << quire_last_error();
  const std::int32_t starts[2] = {0, 3}, seq_lens[1] = {11};
  std::vector<std::int32_t> blocks = {3};
  const std::int64_t shape[2] = {1, 1};
  QuireTensor table;
  ASSERT_EQ(quire_tensor_init(&table, blocks.data(), QUIRE_INT32, shape, 2), QUIRE_OK);
  QuireBatch batch{};
  batch.num_reqs = 1;
  batch.query_start_loc = starts;
  batch.seq_lens = seq_lens;
  batch.block_table = &table;
  QuireMetadata* metadata = nullptr;
  ASSERT_EQ(quire_build_for_drafting(builder, &batch, 1, &metadata), QUIRE_OK) << quire_last_error();
  quire_metadata_destroy(metadata);
  ASSERT_EQ(quire_build_for_cudagraph_capture(builder, &batch, &metadata), QUIRE_OK) << quire_last_error();
  EXPECT_EQ(quire_update_for_cudagraph_replay(builder, metadata, &batch), QUIRE_INVALID_ARGUMENT);
  EXPECT_NE(std::string(quire_last_error()).find("on a device, got it on the host"), std::string::npos);
  EXPECT_EQ(quire_update_for_cudagraph_replay(builder, nullptr, &batch), QUIRE_INVALID_ARGUMENT);
  quire_metadata_destroy(metadata);
  EXPECT_EQ(quire_build_for_drafting(builder, &batch, -1, &metadata), QUIRE_INVALID_ARGUMENT);
  quire_builder_destroy(builder);
  quire_tree_destroy(tree);
  config.tree = nullptr;

  ASSERT_EQ(quire_find_backend("DIFFERENTIAL_FLASH_ATTN", &backend), QUIRE_OK);
  const std::vector<float> row(16, 0.1f), norm(32, 1.0f);
  QuireImpl* impl = nullptr;
  EXPECT_EQ(quire_impl_create(backend, &config, &impl), QUIRE_INVALID_ARGUMENT);
  config.lambda_q1 = config.lambda_k1 = config.lambda_q2 = config.lambda_k2 = row.data();
  config.subln_weight = norm.data();
  ASSERT_EQ(quire_impl_create(backend, &config, &impl), QUIRE_OK) << quire_last_error();
  quire_impl_destroy(impl);
}

TEST(CApi, ErrorsHaveCodesAndMessagesOfTheirThread) {
  const QuireBackend* backend = nullptr;
  EXPECT_EQ(quire_find_backend("NOPE", &backend), QUIRE_NOT_FOUND);
  EXPECT_NE(std::string(quire_last_error()).find("TREE_ATTN"), std::string::npos);
  std::thread([] { EXPECT_STREQ(quire_last_error(), ""); }).join();
  EXPECT_EQ(quire_find_backend(nullptr, &backend), QUIRE_INVALID_ARGUMENT);
  EXPECT_STREQ(quire_last_error(), "name: want a pointer, got null");
  ASSERT_EQ(quire_find_backend("XFORMERS", &backend), QUIRE_OK);
  EXPECT_STREQ(quire_last_error(), "");

  QuireLayerConfig config = small_layer();
  config.attn_type = QUIRE_ENCODER;
  EXPECT_EQ(quire_validate(backend, &config), QUIRE_UNSUPPORTED);
  EXPECT_STREQ(quire_last_error(), "XFORMERS: attention type encoder not supported");
  config.attn_type = 9;
  EXPECT_EQ(quire_validate(backend, &config), QUIRE_INVALID_ARGUMENT);
  EXPECT_STREQ(quire_last_error(), "attn_type: want 0 to 3, got 9");
  EXPECT_EQ(quire_forward(nullptr, nullptr, nullptr, nullptr), QUIRE_INVALID_ARGUMENT);
  EXPECT_EQ(quire_build(nullptr, nullptr, nullptr), QUIRE_INVALID_ARGUMENT);
  std::int64_t bytes = 0;
  config = small_layer();
  config.num_blocks = INT64_MAX;
  EXPECT_EQ(quire_kv_cache_bytes(backend, &config, &bytes), QUIRE_RESOURCE_EXHAUSTED);
  quire_builder_destroy(nullptr);
  quire_impl_destroy(nullptr);
  quire_metadata_destroy(nullptr);
}

TEST(CApi, TreesTellTheirNodes) {
  QuireTree* tree = nullptr;
  ASSERT_EQ(quire_tree_parse("[(0,), (1,), (0, 0)]", &tree), QUIRE_OK) << quire_last_error();
  std::int32_t parents[3] = {9, 9, 9}, depths[4] = {9, 9, 9, 9};
  std::size_t count = 0;
  ASSERT_EQ(quire_tree_parents(tree, parents, 2, &count), QUIRE_OK);
  EXPECT_EQ(count, 3u);
  EXPECT_EQ(std::vector<std::int32_t>(parents, parents + 3), (std::vector<std::int32_t>{0, 0, 9}));
  ASSERT_EQ(quire_tree_depths(tree, depths, 4, &count), QUIRE_OK);
  EXPECT_EQ(std::vector<std::int32_t>(depths, depths + 4), (std::vector<std::int32_t>{0, 1, 1, 2}));
  ASSERT_EQ(quire_tree_depths(tree, nullptr, 0, &count), QUIRE_OK);
  EXPECT_EQ(count, 4u);
  expect_error(quire_tree_depths(tree, nullptr, 4, &count), QUIRE_INVALID_ARGUMENT, "depths: want a pointer");
  expect_error(quire_tree_depths(tree, depths, 4, nullptr), QUIRE_INVALID_ARGUMENT, "count: want a pointer");
  quire_tree_destroy(tree);
  ASSERT_EQ(quire_tree_chain(2, &tree), QUIRE_OK);
  ASSERT_EQ(quire_tree_parents(tree, parents, 3, &count), QUIRE_OK);
  EXPECT_EQ(count, 2u);
  EXPECT_EQ(parents[1], 1);
  quire_tree_destroy(tree);
  quire_tree_destroy(nullptr);

  QuireTree* none = nullptr;
  const std::int32_t wrong[] = {0, 2};
  expect_error(quire_tree_parse("[(1, 1)]", &none), QUIRE_INVALID_ARGUMENT, "(1, 1)");
  expect_error(quire_tree_parse(nullptr, &none), QUIRE_INVALID_ARGUMENT, "text: want a pointer");
  expect_error(quire_tree_from_parents(wrong, 2, &none), QUIRE_INVALID_ARGUMENT, "parents[1]");
  expect_error(quire_tree_from_parents(nullptr, 2, &none), QUIRE_INVALID_ARGUMENT, "parents: want a pointer");
  expect_error(quire_tree_chain(-1, &none), QUIRE_INVALID_ARGUMENT, "-1");
  expect_error(quire_tree_chain(1, nullptr), QUIRE_INVALID_ARGUMENT, "tree: want a pointer");
  expect_error(quire_tree_depths(nullptr, depths, 4, &count), QUIRE_INVALID_ARGUMENT, "tree: want a pointer");
  EXPECT_EQ(none, nullptr);
}

TEST(CApi, BackendsAreListed) {
  const QuireBackend* some[2] = {};
  std::size_t count = 0;
  ASSERT_EQ(quire_backends(some, 2, &count), QUIRE_OK);
  EXPECT_GE(count, 5u);
  EXPECT_STREQ(quire_backend_name(some[0]), "TREE_ATTN");
  EXPECT_STREQ(quire_backend_name(some[1]), "XFORMERS");
  EXPECT_EQ(quire_backend_name(nullptr), nullptr);
  EXPECT_STRNE(quire_version(), "");

  const std::vector<Capability> want = capability_table(*find_backend("TREE_ATTN").value());
  std::vector<QuireCapability> rows(want.size());
  ASSERT_EQ(quire_capabilities(some[0], rows.data(), rows.size(), &count), QUIRE_OK);
  ASSERT_EQ(count, want.size());
  for (std::size_t i = 0; i < count; ++i) {
    EXPECT_EQ(rows[i].name, want[i].name);
    EXPECT_EQ(rows[i].value, want[i].value);
  }
  std::int32_t support = -1;
  ASSERT_EQ(quire_cudagraph_support(some[0], &support), QUIRE_OK);
  EXPECT_EQ(support, static_cast<std::int32_t>(find_backend("TREE_ATTN").value()->cudagraph_support()));
  expect_error(quire_capabilities(nullptr, nullptr, 0, &count), QUIRE_INVALID_ARGUMENT, "backend: want a pointer");
}

TEST(CApi, CudaIsThereOrNamed) {
  EXPECT_EQ(quire_cuda_is_compiled() != 0, cuda::is_compiled());
  QuireDeviceInfo info;
  const Result<cuda::DeviceInfo> device = cuda::device_info();
  EXPECT_EQ(quire_cuda_device_info(&info), static_cast<int>(device.status().code()));
  EXPECT_EQ(quire_cuda_check(nullptr), static_cast<int>(cuda::check(nullptr).code()));
  if (!device.ok()) return;
  EXPECT_EQ(info.name, device.value().name);
  EXPECT_EQ(info.major, device.value().major);
  EXPECT_EQ(info.multiprocessors, device.value().multiprocessors);
}

}  // namespace
}  // namespace quire::test
