// PagedAttention beyond what models use: layers that share a cache, and moves of tokens.
#include "models/attention.h"

#include <gtest/gtest.h>

#include <vector>

#include "quire/runtime.h"

namespace quire {
namespace {

constexpr std::int32_t kTokens = 5;
constexpr std::int32_t kHeads = 2;
constexpr std::int32_t kHeadSize = 32;

AttentionLayerSpec layer_spec(std::int32_t shared_with) {
  return {
      .num_heads = kHeads, .num_kv_heads = kHeads, .head_size = kHeadSize, .scale = 0.2f, .shared_with = shared_with};
}

std::vector<float> some_values(std::size_t seed) {
  std::vector<float> out(kTokens * kHeads * kHeadSize);
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<float>((i * 7 + seed * 13) % 23) / 11.0f - 1.0f;
  return out;
}

TensorView rows(std::vector<float>& values) {
  return *make_tensor(values.data(), DType::kFloat32, {kTokens, kHeads, kHeadSize});
}

// One sequence of five tokens in block 1.
struct Batch {
  std::vector<std::int32_t> starts = {0, kTokens};
  std::vector<std::int32_t> lens = {kTokens};
  std::vector<std::int32_t> table = {1};
  std::vector<std::int64_t> slots = {16, 17, 18, 19, 20};
  std::vector<std::int64_t> positions = {0, 1, 2, 3, 4};

  CommonAttentionMetadata common() {
    CommonAttentionMetadata out;
    out.query_start_loc_cpu = starts;
    out.seq_lens_cpu = lens;
    out.num_reqs = 1;
    out.num_actual_tokens = out.max_query_len = out.max_seq_len = kTokens;
    out.block_table_tensor = *make_tensor(table.data(), DType::kInt32, {1, 1});
    out.slot_mapping = *make_tensor(slots.data(), DType::kInt64, {kTokens});
    out.positions = *make_tensor(positions.data(), DType::kInt64, {kTokens});
    return out;
  }
};

Result<PagedAttention> make_attention(std::int32_t second_shares) {
  QUIRE_ASSIGN_OR_RETURN(const Runtime runtime, default_runtime());
  PagedAttention attention({.backend = "TRITON_ATTN", .runtime = runtime});
  QUIRE_RETURN_IF_ERROR(attention.add_layer(layer_spec(-1)).status());
  QUIRE_RETURN_IF_ERROR(attention.add_layer(layer_spec(second_shares)).status());
  QUIRE_RETURN_IF_ERROR(attention.allocate(4));
  return attention;
}

TEST(PagedAttention, ALayerMayReadAnothersCache) {
  Result<PagedAttention> shared = make_attention(0);
  Result<PagedAttention> own = make_attention(-1);
  ASSERT_TRUE(shared.ok()) << shared.status().to_string();
  ASSERT_TRUE(own.ok()) << own.status().to_string();
  EXPECT_EQ(*own->block_bytes(), 2 * *shared->block_bytes());
  Batch batch;
  std::vector<float> query = some_values(1);
  std::vector<float> key = some_values(2);
  std::vector<float> value = some_values(3);
  std::vector<float> other_key = some_values(4);
  std::vector<float> other_value = some_values(5);
  std::vector<float> want(query.size());
  std::vector<float> got(query.size());
  std::vector<float> apart(query.size());
  for (PagedAttention* attention : {&*shared, &*own}) {
    ASSERT_TRUE(attention->begin_step(batch.common()).ok());
    const AttentionCall first{.query = rows(query), .key = rows(key), .value = rows(value), .output = rows(want)};
    ASSERT_TRUE(attention->run(0, first).ok());
    // A sharing layer stores nothing of its own: what it is given as keys does not matter.
    const AttentionCall second{.query = rows(query),
                               .key = rows(other_key),
                               .value = rows(other_value),
                               .output = rows(attention == &*shared ? got : apart)};
    ASSERT_TRUE(attention->run(1, second).ok());
  }
  EXPECT_EQ(got, want);
  EXPECT_NE(apart, want);
  EXPECT_FALSE(shared->add_layer(layer_spec(7)).ok());
}

TEST(PagedAttention, MovedTokensAreSeenAtTheirNewPlace) {
  Result<PagedAttention> attention = make_attention(-1);
  ASSERT_TRUE(attention.ok()) << attention.status().to_string();
  Batch batch;
  std::vector<float> query = some_values(1);
  std::vector<float> key = some_values(2);
  std::vector<float> value = some_values(3);
  std::vector<float> want(query.size());
  ASSERT_TRUE(attention->begin_step(batch.common()).ok());
  ASSERT_TRUE(
      attention->run(0, {.query = rows(query), .key = rows(key), .value = rows(value), .output = rows(want)}).ok());
  std::vector<SlotPair> pairs;
  for (std::int64_t i = 0; i < kTokens; ++i) pairs.push_back({16 + i, 32 + i});
  ASSERT_TRUE(attention->move_tokens(pairs).ok());
  batch.table = {2};
  batch.slots.assign(kTokens, -1);  // nothing is stored anew
  std::vector<float> got(query.size());
  ASSERT_TRUE(attention->begin_step(batch.common()).ok());
  ASSERT_TRUE(
      attention->run(0, {.query = rows(query), .key = rows(key), .value = rows(value), .output = rows(got)}).ok());
  EXPECT_EQ(got, want);
  const SlotPair outside{0, 64};
  EXPECT_EQ(attention->move_tokens({&outside, 1}).code(), StatusCode::kOutOfRange);
}

}  // namespace
}  // namespace quire
