// Lists the rows of the kernels' table.
#include "gpu/bench/work.h"

#include <numeric>
#include <tuple>
#include <utility>

#include "io/trace.h"

namespace quire::bench {
namespace {

std::vector<std::int32_t> uniform(std::int32_t count, std::int32_t len) {
  return std::vector<std::int32_t>(static_cast<std::size_t>(count), len);
}

// 64 decodes as a serving system would see them at some moment: half of Azure's conversations, half of Mooncake's.
Result<std::vector<std::int32_t>> ragged(const std::string& traces) {
  std::vector<std::int32_t> lengths;
  for (const std::string_view file : {"azure_llm_2023_conv_200.csv", "mooncake_conversation_50.jsonl"}) {
    QUIRE_ASSIGN_OR_RETURN(const std::vector<TraceRequest> trace, read_trace(traces + "/" + std::string(file)));
    QUIRE_ASSIGN_OR_RETURN(const std::vector<BatchRequest> drawn, draw_batch(trace, {.num_decodes = 32}));
    for (const BatchRequest& request : drawn) lengths.push_back(request.seq_len);
  }
  return lengths;
}

Status add_ragged(const std::string& traces, std::vector<Work>& rows) {
  QUIRE_ASSIGN_OR_RETURN(const std::vector<std::int32_t> lengths, ragged(traces));
  const std::int64_t total = std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0});
  rows.push_back(
      {.name = "decode 64 uniform, bytes of ragged", .seq_lens = uniform(64, static_cast<std::int32_t>(total / 64))});
  rows.push_back({.name = "decode 64 ragged, Azure and Mooncake",
                  .seq_lens = lengths,
                  .goal = {.beside = "decode 64 uniform, bytes of ragged", .ratio = 1.0 / 0.9}});
  return {};
}

void add_decodes(std::vector<Work>& rows) {
  const auto add = [&](const char* name, std::int32_t count, std::int32_t len, const Goal& goal,
                       const char* reference) {
    rows.push_back({.name = name, .seq_lens = uniform(count, len), .goal = goal, .reference = reference});
  };
  add("decode 1x1k", 1, 1024, {.us = 7}, "14.4, 16.4");
  add("decode 1x8k", 1, 8192, {.us = 15}, "52, 25");
  add("decode 1x32k", 1, 32768, {.us = 40}, "174, 53");
  add("decode 1x128k", 1, 131072, {.read_fraction = 0.90}, "640, 150");
  add("decode 16x8k", 16, 8192, {.read_fraction = 0.90}, "234, 144");
  add("decode 64x1k", 64, 1024, {.read_fraction = 0.85}, "83, 90");
  add("decode 64x8k", 64, 8192, {.read_fraction = 0.95}, "558, 511");
  add("decode 256x4k", 256, 4096, {.read_fraction = 0.95}, "1107, 1020");
  add("decode 16x32k", 16, 32768, {.read_fraction = 0.95}, "");
  add("decode 64x4k", 64, 4096, {}, "");
  rows.push_back({.name = "decode 64x8k batch-invariant", .seq_lens = uniform(64, 8192), .splits = KVSplits::kFixed});
}

void add_narrow_decodes(std::vector<Work>& rows) {
  const auto add = [&](const char* name, KVCacheDType cache, ScalePlacement scales, const char* reference) {
    rows.push_back({.name = name,
                    .cache = cache,
                    .scales = scales,
                    .seq_lens = uniform(64, 8192),
                    .goal = {.read_fraction = 0.85},
                    .reference = reference});
  };
  add("decode fp8 64x8k", KVCacheDType::kFp8E4M3, ScalePlacement::kInline, "693, -");
  add("decode fp8 per token-head 64x8k", KVCacheDType::kFp8PerTokenHead, ScalePlacement::kInline, "");
  add("decode int8 inline scales 64x8k", KVCacheDType::kInt8PerTokenHead, ScalePlacement::kInline, "");
  add("decode int8 separate scales 64x8k", KVCacheDType::kInt8PerTokenHead, ScalePlacement::kSeparate, "");
}

void add_trees(std::vector<Work>& rows) {
  for (const auto& [count, len, us, reference] : {std::tuple{1, 8192, 28.0, "387, chain 33"},
                                                  {8, 8192, 125.0, "1060, chain 130"},
                                                  {32, 4096, 260.0, "2082, -"}}) {
    rows.push_back({.name = "tree 64 nodes " + std::to_string(count) + "x" + std::to_string(len / 1024) + "k",
                    .seq_lens = uniform(count, len),
                    .query_len = 64,
                    .tree = true,
                    .goal = {.us = us},
                    .reference = reference});
  }
  rows.push_back({.name = "tree 8 nodes 1x8k",
                  .seq_lens = uniform(1, 8192),
                  .query_len = 8,
                  .tree = true,
                  .goal = {.beside = "decode 1x8k", .ratio = 1.15},
                  .reference = "420, chain 26"});
  rows.push_back({.name = "tree 8 nodes 16x8k",
                  .seq_lens = uniform(16, 8192),
                  .query_len = 8,
                  .tree = true,
                  .goal = {.beside = "decode 16x8k", .ratio = 1.15}});
  Work chain{.name = "chain 8, int8 16x4k",
             .cache = KVCacheDType::kInt8PerTokenHead,
             .scales = ScalePlacement::kSeparate,
             .seq_lens = uniform(16, 4096),
             .query_len = 8};
  rows.push_back(chain);
  Work all = chain;
  all.name = "tree 8, int8, window 4k, sinks 16x8k";
  all.seq_lens = uniform(16, 8192);
  all.window = 4096;
  all.sinks = all.tree = true;
  all.goal = {.beside = "chain 8, int8 16x4k", .ratio = 1.25};
  rows.push_back(all);
}

void add_other_shapes(std::vector<Work>& rows) {
  rows.push_back({.name = "DIFFKV 192/128 decode 16x8k",
                  .format = KVCacheFormat::kPackedKV,
                  .seq_lens = uniform(16, 8192),
                  .head_size = 192,
                  .goal = {.read_fraction = 0.90}});
  rows.push_back({.name = "differential decode 16x8k",
                  .format = KVCacheFormat::kDifferential,
                  .seq_lens = uniform(16, 8192),
                  .kv_heads = 32,
                  .head_size = 64,
                  .head_size_v = 64,
                  .goal = {.read_fraction = 0.90}});
  rows.push_back({.name = "decode d64 64x8k", .seq_lens = uniform(64, 8192), .head_size = 64, .head_size_v = 64});
  rows.push_back({.name = "decode d256 64x4k", .seq_lens = uniform(64, 4096), .head_size = 256, .head_size_v = 256});
}

void add_prefills(std::vector<Work>& rows) {
  const auto add = [&](const char* name, std::int32_t len, std::int32_t head_size, const Goal& goal,
                       const char* reference) {
    rows.push_back({.name = name,
                    .seq_lens = uniform(1, len),
                    .head_size = head_size,
                    .head_size_v = head_size,
                    .is_prefill = true,
                    .goal = goal,
                    .reference = reference});
  };
  add("prefill causal d128 1x2k", 2048, 128, {}, "64, 400-439 TFLOP/s");
  add("prefill causal d128 1x8k", 8192, 128, {.tflops = 250}, "72, 553-572 TFLOP/s");
  add("prefill causal d64 1x8k", 8192, 64, {}, "58, 462-468 TFLOP/s");
  add("prefill causal d256 1x8k", 8192, 256, {}, "84, 629-671 TFLOP/s");
  for (const auto& [name, cache] : {std::pair{"prefill fp8 1x8k", KVCacheDType::kFp8E4M3},
                                    {"prefill int8 separate scales 1x8k", KVCacheDType::kInt8PerTokenHead}}) {
    rows.push_back({.name = name,
                    .cache = cache,
                    .scales = ScalePlacement::kSeparate,
                    .seq_lens = uniform(1, 8192),
                    .is_prefill = true});
  }
  rows.push_back({.name = "prefill differential 1x8k",
                  .format = KVCacheFormat::kDifferential,
                  .seq_lens = uniform(1, 8192),
                  .kv_heads = 32,
                  .head_size = 64,
                  .head_size_v = 64,
                  .is_prefill = true,
                  .reference = "-, 1030 us (four calls)"});
}

}  // namespace

Result<std::vector<Work>> all_work(const std::string& traces) {
  std::vector<Work> rows;
  add_decodes(rows);
  QUIRE_RETURN_IF_ERROR(add_ragged(traces, rows));
  add_narrow_decodes(rows);
  add_trees(rows);
  add_other_shapes(rows);
  add_prefills(rows);
  return rows;
}

}  // namespace quire::bench
