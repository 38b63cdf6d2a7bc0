// BenchProblem: one batch of one backend with random data, ready to be run again and again.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/bench/page_buffer.h"
#include "io/trace.h"
#include "quire/backend.h"

namespace quire::cli {

enum class BlockOrder : std::uint8_t { kShuffled, kSequential };

struct BenchConfig {
  std::string backend = "TRITON_ATTN";
  DType dtype = DType::kBFloat16;
  KVCacheDType kv_cache_dtype = KVCacheDType::kAuto;
  std::int32_t num_heads = 32;
  std::int32_t num_kv_heads = 8;
  std::int32_t head_size = 128;
  std::int32_t head_size_v = 128;
  std::int32_t block_size = 16;
  KVCacheLayout layout = KVCacheLayout::kNHD;
  std::optional<std::int32_t> sliding_window;
  std::optional<float> logits_soft_cap;
  bool alibi = false;
  bool sinks = false;
  BlockOrder block_order = BlockOrder::kShuffled;
  std::uint64_t seed = 0;
  Runtime runtime;
  std::int64_t cold_bytes = 0;  // copies of the batch's keys and values are made until they are larger than this
};

// What one run of the batch costs at least: useful operations and bytes.
struct Work {
  double flops = 0.0;  // products of visible pairs alone
  double bytes = 0.0;  // visible keys and values once a sequence, queries and outputs
};

class BenchProblem {
 public:
  // Errors: what the backend says, and kResourceExhausted if the batch needs more memory than is available.
  static Result<std::unique_ptr<BenchProblem>> create(const BenchConfig& config, std::vector<BatchRequest> batch);

  // Runs attention on the next of the copies.
  Status run();

  const BenchConfig& config() const { return config_; }
  const std::vector<BatchRequest>& batch() const { return batch_; }  // in the order that the backend wants
  const Work& work() const { return work_; }
  std::int32_t num_copies() const { return static_cast<std::int32_t>(copies_.size()); }

  // For checks: the query rows, the output of the last run, and the layer that another runtime can be built from.
  const TensorView& query() const { return query_; }
  const TensorView& output() const { return output_; }
  const TensorView& cache() const { return cache_; }
  const AttentionLayer& layer() const { return layer_; }
  ImplConfig impl_config() const;
  BuilderConfig builder_config() const;
  // The block table of the copy that ran last, [num_reqs, max_blocks].
  const TensorView& last_block_table() const { return copies_[last_].block_table; }
  const AttentionBackend& backend() const { return *backend_; }

 private:
  // The same batch on blocks of its own.
  struct Copy {
    std::vector<std::int32_t> blocks;
    TensorView block_table;
    AttentionMetadata metadata;
  };

  BenchProblem(const BenchConfig& config, std::vector<BatchRequest> batch)
      : config_(config), batch_(std::move(batch)) {}
  Status set_up();
  Status order_batch(AttentionMetadataBuilder& builder);
  void count_work();
  Status make_cache();
  Status fill_cache();
  Status make_copies(AttentionMetadataBuilder& builder);
  Status make_tensors();
  KVCacheSpec spec() const;
  std::int64_t blocks_of_batch() const;

  BenchConfig config_;
  std::vector<BatchRequest> batch_;
  const AttentionBackend* backend_ = nullptr;
  std::unique_ptr<AttentionImpl> impl_;
  std::vector<float> alibi_slopes_, sinks_, lambdas_, subln_weight_;
  std::vector<std::int32_t> query_start_loc_, seq_lens_;
  AttentionLayer layer_;
  PageBuffer cache_data_, query_data_, output_data_, workspace_;
  TensorView cache_, query_, output_;
  std::vector<Copy> copies_;
  std::int64_t num_blocks_ = 0;
  std::int64_t num_copies_ = 1;
  std::size_t next_ = 0;
  std::size_t last_ = 0;
  Work work_;
};

}  // namespace quire::cli
