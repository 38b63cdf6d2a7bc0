// A cache of more than 2^31 elements: blocks at its end give the bits that the same rows give at its beginning.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/convert.h"
#include "cuda/attention.h"
#include "gpu/device_case.h"
#include "quire/cuda.h"

namespace quire::testing {
namespace {

void check_ok(const Status& status) { ASSERT_TRUE(status.ok()) << status.to_string(); }

cuda::DeviceBuffer send(const void* data, std::size_t bytes) {
  Result<cuda::DeviceBuffer> buffer = cuda::DeviceBuffer::allocate(bytes);
  EXPECT_TRUE(buffer.ok()) << buffer.status().to_string();
  check_ok(cuda::copy_to_device(buffer->data(), data, bytes, nullptr));
  return std::move(*buffer);
}

template <class T>
cuda::DeviceBuffer send(const std::vector<T>& values) {
  return send(values.data(), values.size() * sizeof(T));
}

std::vector<std::uint16_t> random_bf16(std::size_t count, std::uint64_t seed) {
  Random random(seed);
  std::vector<std::uint16_t> values(count);
  for (std::uint16_t& value : values) value = float_to_bf16(static_cast<float>(2.0 * random.uniform() - 1.0));
  return values;
}

// Stores `tokens` rows in the blocks from `first_block` on, attends to them with `query_len` rows, returns the output.
std::vector<std::uint16_t> attend(const KVSource& cache, std::int32_t first_block, std::int32_t tokens,
                                  std::int32_t query_len) {
  const std::int32_t heads = cache.num_kv_heads;
  const std::int32_t size = cache.head_size;
  const auto rows = random_bf16(static_cast<std::size_t>(tokens * heads * size), 3);
  const auto queries = random_bf16(static_cast<std::size_t>(query_len * 4 * heads * size), 4);
  std::vector<std::int64_t> slots;
  for (std::int32_t i = 0; i < tokens; ++i) slots.push_back(std::int64_t{16} * first_block + i);
  std::vector<std::int32_t> table;
  for (std::int32_t i = 0; i < (tokens + 15) / 16; ++i) table.push_back(first_block + i);
  const auto device_rows = send(rows), device_slots = send(slots), device_queries = send(queries),
             device_table = send(table);
  const std::vector<std::int32_t> starts{0, query_len}, lengths{tokens};
  const auto device_starts = send(starts), device_lengths = send(lengths);
  const auto output = send(queries);
  const Result<TensorView> row_view = make_tensor(device_rows.data(), DType::kBFloat16, {tokens, heads, size}, kDevice);
  const Result<TensorView> slot_view = make_tensor(device_slots.data(), DType::kInt64, {tokens}, kDevice);
  check_ok(cuda::reshape_and_cache_flash(*row_view, *row_view, cache, *slot_view, nullptr));
  AttentionArgs args;
  args.query = device_queries.data();
  args.output = output.data();
  args.query_dtype = args.output_dtype = DType::kBFloat16;
  args.query_head_stride = args.output_head_stride = size;
  args.query_token_stride = args.output_token_stride = std::int64_t{4} * heads * size;
  args.num_seqs = 1;
  args.num_tokens = query_len;
  args.num_q_heads = 4 * heads;
  args.query_start_loc = static_cast<const std::int32_t*>(device_starts.data());
  args.seq_lens = static_cast<const std::int32_t*>(device_lengths.data());
  args.kv = cache;
  args.kv.block_table = static_cast<const std::int32_t*>(device_table.data());
  args.kv.block_table_stride = static_cast<std::int64_t>(table.size());
  args.variant.scale = 0.1f;
  const AttentionPlan plan = make_attention_plan({.rows_per_token = 4}, starts, lengths, args.variant);
  const Runtime runtime{.backplane = Backplane::kCuda};
  Result<cuda::DeviceBuffer> workspace =
      cuda::DeviceBuffer::allocate(cuda::attention_workspace_bytes(args, plan, runtime));
  check_ok(cuda::attention(args, plan, runtime, workspace->bytes()));
  check_ok(cuda::check(nullptr));
  std::vector<std::uint16_t> result(queries.size());
  check_ok(cuda::copy_to_host(result.data(), output.data(), result.size() * 2, nullptr));
  return result;
}

TEST(GpuLargeCache, BlocksBehindTwoToTheThirtyFirstElement) {
  if (const std::string missing = missing_device(); !missing.empty()) GTEST_SKIP() << missing;
  const KVCacheSpec spec{
      .model_dtype = DType::kBFloat16, .num_blocks = 280000, .block_size = 16, .num_kv_heads = 2, .head_size = 128};
  const Result<std::int64_t> bytes = kv_cache_bytes(spec);
  ASSERT_GT(*bytes, std::int64_t{1} << 32);
  Result<cuda::DeviceBuffer> memory = cuda::DeviceBuffer::allocate(static_cast<std::size_t>(*bytes));
  if (!memory.ok()) GTEST_SKIP() << memory.status().to_string();
  check_ok(cuda::fill(memory->data(), 0xff, memory->size(), nullptr));
  const Result<TensorView> view = view_kv_cache(spec, memory->data(), kDevice);
  const Result<KVSource> cache = bind_kv_cache(spec, *view, {});
  ASSERT_TRUE(cache.ok()) << cache.status().to_string();
  for (const std::int32_t query_len : {1, 50}) {
    const auto low = attend(*cache, 1, 300, query_len);
    EXPECT_EQ(low, attend(*cache, 279900, 300, query_len));
    EXPECT_EQ(low, attend(*cache, 270000, 300, query_len));
  }
}

}  // namespace
}  // namespace quire::testing
