// BenchProblem: one batch of one backend with random data, ready to be run again and again.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/bench/bench_buffer.h"
#include "io/trace.h"
#include "quire/backend.h"
#include "quire/ops.h"

namespace quire::cli {

enum class BlockOrder : std::uint8_t { kShuffled, kSequential };

// What a run does: attention over the cache, the store of the batch's new tokens, the same with rotary embedding, or
// attention with the keys that all requests share (common_prefix) taken once.
enum class BenchOp : std::uint8_t { kAttention, kCacheUpdate, kRopeCacheUpdate, kCascade };
std::string_view bench_op_name(BenchOp op);  // "attention", "cache-update", "rope-cache-update", "cascade"
Result<BenchOp> parse_bench_op(std::string_view name);

struct BenchConfig {
  BenchOp op = BenchOp::kAttention;
  std::int32_t common_prefix = 0;  // tokens at the start of all requests that are the same blocks
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
  std::int32_t tree_nodes = 0;  // > 0: requests of so many new tokens verify a binary tree of them
  BlockOrder block_order = BlockOrder::kShuffled;
  std::uint64_t seed = 0;
  Runtime runtime;
  std::int64_t cold_bytes = 0;  // copies of the batch's keys and values are made until they are larger than this
};

// What one run of the batch costs at least: useful operations and bytes.
struct Work {
  double flops = 0.0;  // products of visible pairs alone
  double bytes = 0.0;  // attention: visible keys and values once a sequence, queries and outputs; updates: rows read
                       // and written
};

class BenchProblem {
 public:
  // Errors: what the backend says, and kResourceExhausted if the batch needs more memory than is available.
  static Result<std::unique_ptr<BenchProblem>> create(const BenchConfig& config, std::vector<BatchRequest> batch);

  // Runs the operation on the next of the copies. On a device it is put on the runtime's stream and not waited for.
  Status run();

  const BenchConfig& config() const { return config_; }
  const std::vector<BatchRequest>& batch() const { return batch_; }  // in the order that the backend wants
  const Work& work() const { return work_; }
  std::int32_t num_copies() const { return static_cast<std::int32_t>(copies_.size()); }

  // For checks: the query rows, the output of the last run, the cache and the block table [num_reqs, max_blocks] of the
  // copy that ran last, all on the host; and the layer that another runtime can be built from.
  struct HostView {
    TensorView query, output, cache, block_table;
    std::vector<PageBuffer> owned;  // copies of what is on a device
  };
  Result<HostView> host_view() const;
  const AttentionLayer& layer() const { return layer_; }
  ImplConfig impl_config() const;
  BuilderConfig builder_config() const;
  const AttentionBackend& backend() const { return *backend_; }

 private:
  // The same batch on blocks of its own.
  struct Copy {
    std::vector<std::int32_t> blocks;
    BenchBuffer table_data;
    TensorView block_table;
    AttentionMetadata metadata;
    CascadePlan cascade;
    BenchBuffer slot_data;
    TensorView slots;
  };

  BenchProblem(const BenchConfig& config, std::vector<BatchRequest> batch)
      : config_(config), batch_(std::move(batch)) {}
  Status set_up();
  Status order_batch(AttentionMetadataBuilder& builder);
  void count_work();
  void count_update();
  Status make_cache();
  Status fill_cache();
  Status make_copies(AttentionMetadataBuilder& builder);
  void place_blocks(Copy& copy, std::int64_t width, std::vector<std::int32_t>::const_iterator& next) const;
  Status make_copy(AttentionMetadataBuilder& builder, Copy& copy, std::int64_t width);
  Status make_tensors();
  Status make_update();
  Status make_slots(Copy& copy, std::int64_t width);
  Result<AttentionArgs> attention_args(const Copy& copy) const;
  Status make_cascade(Copy& copy, std::size_t& workspace_bytes);
  Result<TensorView> make_random(BenchBuffer& data, std::initializer_list<std::int64_t> shape,
                                 std::uint64_t seed) const;
  KVCacheSpec spec() const;
  std::int64_t blocks_of_batch() const;
  Status check_common_prefix() const;
  std::int64_t shared_blocks() const { return config_.common_prefix / config_.block_size; }
  bool is_update() const { return config_.op == BenchOp::kCacheUpdate || config_.op == BenchOp::kRopeCacheUpdate; }

  BenchConfig config_;
  std::vector<BatchRequest> batch_;
  const AttentionBackend* backend_ = nullptr;
  std::unique_ptr<AttentionImpl> impl_;
  std::vector<float> alibi_slopes_, sinks_, lambdas_, subln_weight_;
  std::vector<std::int32_t> query_start_loc_, seq_lens_;
  AttentionLayer layer_;
  std::optional<TokenTree> tree_;
  BenchBuffer cache_data_, query_data_, output_data_, workspace_;
  BenchBuffer key_data_, value_data_, angle_data_, position_data_, slope_data_, sink_data_;
  TensorView cache_, query_, output_, key_, value_;
  RopeArgs rope_;
  std::vector<Copy> copies_;
  std::int64_t num_blocks_ = 0;
  std::int64_t num_copies_ = 1;
  std::size_t next_ = 0;
  std::size_t last_ = 0;
  Work work_;
};

}  // namespace quire::cli
