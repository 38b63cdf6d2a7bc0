// One attention layer on a small random batch: set up, run through a backend's public interface, and computed again
// densely, without cache, blocks or terms, for comparison.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "quire/backend.h"
#include "support/device_copies.h"

namespace quire::test {

struct Sequence {
  std::int32_t context_len = 0;
  std::int32_t query_len = 0;
};

// 4 query heads, 2 KV heads, head size 16, float32, blocks of 16, on the reference.
ImplConfig default_config();

// What a test asks for; everything else follows.
struct LayerSetup {
  std::string_view backend = "TRITON_ATTN";
  std::vector<Sequence> sequences = {{36, 1}, {13, 5}, {0, 33}};
  ImplConfig config = default_config();
  std::optional<TokenTree> tree = {};
  std::vector<const TokenTree*> trees = {};
  std::vector<std::vector<MmRange>> mm_ranges = {};
  bool causal = true;
  std::vector<std::int32_t> encoder_seq_lens = {};  // cross attention
  std::optional<std::int32_t> draft_index = {};
  std::uint64_t seed = 1;
};

// The runtimes that every test runs on: the float64 reference, the CPU's best ISA and, where there is one, a CUDA
// device.
std::vector<Runtime> test_runtimes();

// A setup in host memory, which is copied to the runtime's device for each call and back. The cache holds all keys,
// those of the new tokens included.
class LayerRun {
 public:
  explicit LayerRun(LayerSetup setup);

  // Errors of the constructor's steps, then of forward.
  Status status = {};
  std::unique_ptr<AttentionImpl> impl;
  std::unique_ptr<AttentionMetadataBuilder> builder;
  CommonAttentionMetadata common;
  AttentionMetadata metadata;
  AttentionLayer layer;
  ForwardArgs args;

  std::vector<float> output;  // [tokens, heads, head_size_v]
  std::vector<float> lse;     // [heads, tokens]
  Status forward();
  // Attention by definition, from the keys and values as they were before the cache: [tokens, heads, head_size_v].
  std::vector<double> dense() const;
  std::int32_t num_tokens() const { return query_start_loc_.back(); }
  const LayerSetup& setup() const { return setup_; }
  TensorView new_keys() { return new_keys_; }
  TensorView new_values() { return new_values_; }

 private:
  void make_batch();
  void make_values();
  Status make_layer();
  Status fill_cache();
  void make_scale_caches(const KVCacheSpec& spec);
  std::int32_t seq_len(std::size_t seq) const;
  bool is_visible(std::size_t seq, std::int32_t row, std::int32_t key) const;
  // One row of a query head against a key head and a value head.
  struct Row {
    std::size_t seq = 0;
    std::int32_t row = 0;
    std::int32_t q_head = 0;
    std::int32_t key_head = 0;
    std::int32_t value_head = 0;
  };
  void attend(const Row& at, double* out) const;
  void attend_pair(Row at, std::int32_t pair, double* out) const;

  LayerSetup setup_;
  std::vector<std::int32_t> query_start_loc_, seq_lens_, block_table_;
  std::vector<std::int64_t> slots_;      // of the new tokens
  std::vector<std::int64_t> all_slots_;  // of all tokens
  std::vector<std::size_t> key_start_;   // first row of each sequence in keys_
  std::vector<float> query_, keys_, values_;
  std::vector<std::vector<std::byte>> buffers_;
  TensorView new_keys_, new_values_;
  DeviceCopies batch_copies_;
  std::vector<MmRange> mm_ranges_;
  std::vector<std::int32_t> mm_range_start_;
};

// The largest absolute difference.
double worst_difference(const std::vector<float>& got, const std::vector<double>& want);
double worst_difference(const std::vector<float>& got, const std::vector<float>& want);

}  // namespace quire::test
