// AttentionLayerExample: one layer of attention with its own paged cache, as small as the public API allows.
#pragma once

#include <quire/quire.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

namespace example {

// Ends the program with the message of a failed call.
inline void check(const quire::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.to_string().c_str());
  std::exit(1);
}
template <class T>
T check(quire::Result<T> result) {
  check(result.status());
  return std::move(result).value();
}

inline std::vector<float> random_values(std::size_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  std::generate(values.begin(), values.end(), [&] { return normal(generator); });
  return values;
}

// Sizes of the layer: 8 query heads over 2 KV heads of 64, float32, a cache of 64 blocks of 16 tokens.
inline constexpr int kHeads = 8;
inline constexpr int kKvHeads = 2;
inline constexpr int kHeadSize = 64;
inline constexpr int kBlockSize = 16;
inline constexpr int kBlocks = 64;

// One request's new tokens: its rows of query, key and value, and where they stand.
struct Request {
  std::vector<std::int32_t> blocks;  // the blocks that hold the whole sequence
  std::int32_t context_len = 0;      // tokens that are in the cache already
  std::int32_t query_len = 0;        // new tokens
  const quire::TokenTree* tree = nullptr;
};

class AttentionLayerExample {
 public:
  explicit AttentionLayerExample(const std::string& backend,
                                 quire::KVCacheDType cache_dtype = quire::KVCacheDType::kAuto) {
    backend_ = check(quire::find_backend(backend));
    const quire::Runtime runtime = check(quire::default_runtime());
    spec_.format = backend_->kv_cache_format();
    spec_.cache_dtype = cache_dtype;
    spec_.model_dtype = quire::DType::kFloat32;
    spec_.num_blocks = kBlocks;
    spec_.block_size = kBlockSize;
    spec_.num_kv_heads = kKvHeads;
    spec_.head_size = kHeadSize;
    cache_.resize(static_cast<std::size_t>(check(quire::kv_cache_bytes(spec_)) + 3) / 4);

    quire::ImplConfig impl;
    impl.num_heads = kHeads;
    impl.num_kv_heads = kKvHeads;
    impl.head_size = kHeadSize;
    impl.scale = 0.125f;
    impl.kv_cache_dtype = cache_dtype;
    impl.dtype = quire::DType::kFloat32;
    impl.block_size = kBlockSize;
    impl.runtime = runtime;
    impl_ = check(backend_->make_impl(impl));

    quire::BuilderConfig builder;
    builder.num_heads = kHeads;
    builder.num_kv_heads = kKvHeads;
    builder.head_size = kHeadSize;
    builder.block_size = kBlockSize;
    builder.num_blocks = kBlocks;
    builder.runtime = runtime;
    builder_ = check(backend_->make_builder(builder));
  }

  // Stores the new keys and values and returns attention's output [tokens, kHeads, kHeadSize].
  std::vector<float> run(const std::vector<Request>& requests, std::vector<float>& query, std::vector<float>& key,
                         std::vector<float>& value) {
    std::vector<std::int32_t> starts{0};
    std::vector<std::int32_t> seq_lens;
    std::vector<const quire::TokenTree*> trees;
    std::size_t width = 1;
    for (const Request& request : requests) {
      starts.push_back(starts.back() + request.query_len);
      seq_lens.push_back(request.context_len + request.query_len);
      trees.push_back(request.tree);
      width = std::max(width, request.blocks.size());
    }
    std::vector<std::int32_t> table;
    for (const Request& request : requests) {
      table.insert(table.end(), request.blocks.begin(), request.blocks.end());
      table.resize(table.size() + width - request.blocks.size(), 0);
    }
    const std::int64_t tokens = starts.back();
    std::vector<std::int64_t> slots(static_cast<std::size_t>(tokens));

    quire::CommonAttentionMetadata common;
    common.query_start_loc_cpu = starts;
    common.seq_lens_cpu = seq_lens;
    common.num_reqs = static_cast<std::int32_t>(requests.size());
    common.num_actual_tokens = starts.back();
    for (const Request& request : requests) {
      common.max_query_len = std::max(common.max_query_len, request.query_len);
      common.max_seq_len = std::max(common.max_seq_len, request.context_len + request.query_len);
    }
    common.block_table_tensor = check(
        quire::make_tensor(table.data(), quire::DType::kInt32, {common.num_reqs, static_cast<std::int64_t>(width)}));
    common.slot_mapping = check(quire::make_tensor(slots.data(), quire::DType::kInt64, {tokens}));
    if (std::any_of(trees.begin(), trees.end(), [](const auto* tree) { return tree != nullptr; })) common.trees = trees;
    check(quire::compute_slot_mapping(common, kBlockSize, kBlocks, slots));
    const quire::AttentionMetadata metadata = check(builder_->build(0, common));

    const auto rows = [&](std::vector<float>& values, std::int64_t heads) {
      return check(quire::make_tensor(values.data(), quire::DType::kFloat32, {tokens, heads, kHeadSize}));
    };
    std::vector<float> output(query.size());
    const quire::AttentionLayer layer;
    quire::ForwardArgs forward;
    forward.query = rows(query, kHeads);
    forward.kv_cache = check(quire::view_kv_cache(spec_, cache_.data()));
    forward.output = rows(output, kHeads);
    forward.metadata = &metadata;
    check(impl_->do_kv_cache_update(layer, rows(key, kKvHeads), rows(value, kKvHeads), forward.kv_cache,
                                    common.slot_mapping));
    // Scratch has to be 64-byte aligned; a real engine keeps one piece for all steps.
    const std::size_t bytes = impl_->workspace_bytes(metadata);
    std::vector<std::byte> scratch(bytes + 64);
    void* start = scratch.data();
    std::size_t space = scratch.size();
    std::align(64, bytes, start, space);
    forward.workspace = {static_cast<std::byte*>(start), bytes};
    check(impl_->forward(layer, forward));
    return output;
  }

 private:
  const quire::AttentionBackend* backend_ = nullptr;
  quire::KVCacheSpec spec_;
  std::vector<float> cache_;  // floats, for their alignment
  std::unique_ptr<quire::AttentionImpl> impl_;
  std::unique_ptr<quire::AttentionMetadataBuilder> builder_;
};

inline double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(static_cast<double>(a[i]) - b[i]));
  return largest;
}

}  // namespace example
