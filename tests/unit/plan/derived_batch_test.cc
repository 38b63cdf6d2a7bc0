// Virtual batches of chunked local attention and the fast prefill of layers that share a cache.
#include <gtest/gtest.h>

#include <random>

#include "unit/plan/batch_fixture.h"

namespace quire {
namespace {

using Lens = std::vector<std::int32_t>;

std::vector<std::int32_t> diff(std::span<const std::int32_t> starts) {
  std::vector<std::int32_t> out;
  for (std::size_t i = 1; i < starts.size(); ++i) out.push_back(starts[i] - starts[i - 1]);
  return out;
}

TEST(LocalAttention, WorkedExample) {
  Batch batch({4, 10, 5}, {6, 17, 9}, 2);
  const auto local = make_local_attention_virtual_batches(4, batch.common(), 2).value();
  EXPECT_EQ(diff(local->query_start_loc), (Lens{2, 2, 1, 4, 4, 1, 4, 1}));
  EXPECT_EQ(local->seq_lens, (Lens{4, 2, 4, 4, 4, 1, 4, 1}));
  EXPECT_EQ(local->num_computed_tokens, (Lens{2, 0, 3, 0, 0, 0, 0, 0}));
  const CommonAttentionMetadata& common = local->common;
  EXPECT_EQ(common.num_reqs, 8);
  EXPECT_EQ(common.num_actual_tokens, 19);
  EXPECT_EQ(common.max_query_len, 4);
  EXPECT_EQ(common.max_seq_len, 4);
  ASSERT_EQ(common.block_table_tensor.size(1), 2);
  const std::int32_t width = batch.width;
  const std::int32_t* table = batch.block_table.data();
  // The second request's chunks begin at blocks 2, 4, 6 and 8; the third's at 2 and 4.
  const Lens first_blocks = {table[0],         table[2],         table[width + 2],     table[width + 4],
                             table[width + 6], table[width + 8], table[2 * width + 2], table[2 * width + 4]};
  for (std::size_t i = 0; i < 8; ++i) EXPECT_EQ(local->block_table[2 * i], first_blocks[i]) << i;
  EXPECT_TRUE(validate_batch(common, batch.limits()).ok());
}

// Every new token sees, through its virtual sequence, the keys of its own chunk up to itself.
TEST(LocalAttention, RandomBatchesSeeTheirChunk) {
  std::mt19937 random(31);
  for (int i = 0; i < 300; ++i) {
    const std::int32_t block_size = static_cast<std::int32_t>(random() % 3) + 1;
    const std::int32_t chunk = block_size * (static_cast<std::int32_t>(random() % 4) + 1);
    Lens query_lens;
    Lens seq_lens;
    for (std::size_t req = 0; req < random() % 5; ++req) {
      query_lens.push_back(static_cast<std::int32_t>(random() % 20));
      seq_lens.push_back(query_lens.back() + static_cast<std::int32_t>(random() % 20));
    }
    Batch batch(query_lens, seq_lens, block_size);
    const auto local = make_local_attention_virtual_batches(chunk, batch.common(), block_size).value();
    ASSERT_TRUE(validate_batch(local->common, batch.limits()).ok());
    std::size_t sequence = 0;
    std::int32_t row = 0;
    for (std::int32_t req = 0; req < static_cast<std::int32_t>(seq_lens.size()); ++req) {
      const std::int32_t seq_len = seq_lens[static_cast<std::size_t>(req)];
      for (std::int32_t p = seq_len - query_lens[static_cast<std::size_t>(req)]; p < seq_len; ++p, ++row) {
        while (local->query_start_loc[sequence + 1] <= row) ++sequence;
        const std::int32_t virtual_row = row - local->query_start_loc[sequence];
        const std::int32_t q_pos = local->num_computed_tokens[sequence] + virtual_row;
        ASSERT_EQ(q_pos, p % chunk);
        const std::int32_t* table = local->block_table.data() +
                                    static_cast<std::int64_t>(sequence) * local->common.block_table_tensor.stride(0);
        for (std::int32_t key = 0; key <= q_pos; ++key) {
          const std::int64_t slot = static_cast<std::int64_t>(table[key / block_size]) * block_size + key % block_size;
          ASSERT_EQ(slot, batch.slot_of(req, p / chunk * chunk + key));
        }
      }
    }
  }
}

TEST(LocalAttention, AHugeChunkTakesNoMoreBlocksThanTheTableHas) {
  Batch batch({3}, {7}, 1);
  const auto local = make_local_attention_virtual_batches(1 << 30, batch.common(), 1).value();
  EXPECT_EQ(local->common.block_table_tensor.size(1), batch.width);
  EXPECT_EQ(local->seq_lens, (Lens{7}));
}

TEST(LocalAttention, Errors) {
  Batch batch({4}, {6}, 4);
  CommonAttentionMetadata common = batch.common();
  const auto message = [&](std::int32_t chunk, std::int32_t block_size) {
    return make_local_attention_virtual_batches(chunk, common, block_size).status().message();
  };
  EXPECT_EQ(message(6, 4), "chunk: want a positive multiple of the block size 4, got 6");
  EXPECT_EQ(message(0, 4), "chunk: want a positive multiple of the block size 4, got 0");
  EXPECT_EQ(message(4, 0), "block_size: want at least 1, got 0");
  EXPECT_EQ(message(4, 1), "block_table: request 0: want 6 blocks, got 3");
  common.block_table_tensor.device.type = DeviceType::kCuda;
  EXPECT_EQ(message(4, 4), "block_table: want a tensor on the host, got one on cuda:0");
  common = batch.common();
  const std::vector<std::uint8_t> causal = {1};
  common.causal_per_seq = causal;
  EXPECT_EQ(make_local_attention_virtual_batches(4, common, 4).status().code(), StatusCode::kUnsupported);
}

TEST(FastPrefill, WorkedExample) {
  Batch batch({15, 5, 8}, {15, 30, 8});
  CommonAttentionMetadata common = batch.common();
  const Lens logits = {14, 18, 19, 27, 27, 27};
  common.logits_indices_padded = logits;
  common.num_logits_indices = 4;
  const auto fast = make_kv_sharing_fast_prefill_batch(common).value();
  EXPECT_EQ(fast->query_start_loc, (Lens{0, 1, 3, 4}));
  EXPECT_EQ(fast->seq_lens, (Lens{15, 30, 8}));
  EXPECT_EQ(fast->common.num_actual_tokens, 4);
  EXPECT_EQ(fast->common.max_query_len, 2);
  EXPECT_EQ(fast->common.max_seq_len, 30);
  EXPECT_EQ(fast->common.num_logits_indices, 4);
  EXPECT_EQ(fast->common.logits_indices_padded.size(), 6u);
  EXPECT_EQ(fast->num_computed_tokens, (Lens{14, 28, 7}));
  EXPECT_TRUE(fast->common.causal);
  EXPECT_TRUE(validate_batch(fast->common, batch.limits()).ok());
}

TEST(FastPrefill, RequestsMayWantNothing) {
  Batch batch({4, 3}, {4, 9});
  CommonAttentionMetadata common = batch.common();
  const Lens logits = {6};
  common.logits_indices_padded = logits;
  common.num_logits_indices = 1;
  EXPECT_EQ(make_kv_sharing_fast_prefill_batch(common).value()->query_start_loc, (Lens{0, 0, 1}));
}

TEST(FastPrefill, SingleTokensComeBackAsTheyAre) {
  Batch batch({1, 1}, {4, 9});
  const auto fast = make_kv_sharing_fast_prefill_batch(batch.common()).value();
  EXPECT_EQ(fast->common.query_start_loc_cpu.data(), batch.query_start_loc.data());
  EXPECT_EQ(fast->common.num_actual_tokens, 2);
}

TEST(FastPrefill, Errors) {
  Batch batch({4, 3}, {4, 9});
  CommonAttentionMetadata common = batch.common();
  const auto message = [&](Lens logits, std::int32_t count) {
    common.logits_indices_padded = logits;
    common.num_logits_indices = count;
    return make_kv_sharing_fast_prefill_batch(common).status().message();
  };
  EXPECT_EQ(message({}, 0), "logits_indices: want at least one and no more than the 0 given, got num_logits_indices 0");
  EXPECT_EQ(message({3}, 2),
            "logits_indices: want at least one and no more than the 1 given, got num_logits_indices 2");
  EXPECT_EQ(message({3, 7}, 2), "logits_indices: index 1: want a token below 7, got 7");
  EXPECT_EQ(message({2, 6}, 2),
            "logits_indices: request 0: want the last rows of the request in order, so 3 at index 0, got 2");
  EXPECT_EQ(message({3, 6, 5}, 3),
            "logits_indices: request 1: want the last rows of the request in order, so 5 at index 1, got 6");
  EXPECT_EQ(message({-1, 0, 1, 2, 3}, 5),
            "logits_indices: request 0: want the last rows of the request in order, so -1 at index 0, got -1");
}

}  // namespace
}  // namespace quire
