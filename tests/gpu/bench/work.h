// The rows of the kernels' table: batches and shapes, what is asked of them, and what others need for them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "quire/kv_cache.h"
#include "quire/runtime.h"
#include "quire/status.h"

namespace quire::bench {

// What a row is held against; the first that is set counts.
struct Goal {
  double us = 0.0;               // at most
  double read_fraction = 0.0;    // of the read-only bandwidth, at least
  double tflops = 0.0;           // at least
  std::string_view beside = {};  // an earlier row: at most `ratio` times its time
  double ratio = 0.0;
};

struct Work {
  std::string name;
  KVCacheFormat format = KVCacheFormat::kBlockFirst;
  KVCacheDType cache = KVCacheDType::kAuto;
  ScalePlacement scales = ScalePlacement::kInline;
  std::vector<std::int32_t> seq_lens;
  std::int32_t query_len = 1;
  std::int32_t q_heads = 32;
  std::int32_t kv_heads = 8;
  std::int32_t head_size = 128;
  std::int32_t head_size_v = 128;
  std::int32_t block_size = 16;
  std::int32_t window = 0;
  bool sinks = false;
  bool tree = false;
  bool is_prefill = false;
  KVSplits splits = KVSplits::kBalanced;
  Goal goal = {};
  // vLLM's TRITON_ATTN and FlashAttention-3 on pages of 16, on the same kind of machine in another run: us, or TFLOP/s
  // of prefills.
  std::string_view reference = {};
};

// All rows, in the table's order. `traces` is the folder of the request traces that the ragged batch is drawn from.
Result<std::vector<Work>> all_work(const std::string& traces);

}  // namespace quire::bench
