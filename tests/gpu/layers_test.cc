// Layers of backends in CUDA graphs: a capture of cache update and attention, replayed with metadata that has changed
// on the device, against calls with the same metadata; and faults on their way through the layers.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "core/convert.h"
#include "cuda/timing.h"
#include "gpu/device_case.h"
#include "quire/backend.h"
#include "quire/cuda.h"
#include "quire/tree.h"
#include "support/random.h"

namespace quire::testing {
namespace {

void require(const Status& status) { ASSERT_TRUE(status.ok()) << status.to_string(); }

// One array, on the host and on the device.
struct Twin {
  std::vector<std::byte> host;
  cuda::DeviceBuffer device;

  Twin() = default;
  explicit Twin(std::size_t bytes, std::byte fill = std::byte{0}) : host(bytes, fill) {
    Result<cuda::DeviceBuffer> buffer = cuda::DeviceBuffer::allocate(bytes);
    require(buffer.status());
    device = std::move(*buffer);
    send(nullptr);
  }
  void send(void* stream) {
    require(cuda::copy_to_device(device.data(), host.data(), host.size(), stream));
    require(cuda::synchronize(stream));
  }
  void fetch(void* stream) { require(cuda::copy_to_host(host.data(), device.data(), host.size(), stream)); }
  template <class T>
  T* as() {
    return reinterpret_cast<T*>(host.data());
  }
  TensorView view(DType dtype, std::initializer_list<std::int64_t> shape, bool on_device) {
    void* data = on_device ? device.data() : static_cast<void*>(host.data());
    return make_tensor(data, dtype, shape, on_device ? kDevice : Device{}).value();
  }
};

struct GraphSetup {
  std::string_view backend = "TRITON_ATTN";
  std::int32_t query_len = 1;
  std::int32_t head_size = 64;
  bool has_trees = false;   // of the requests, in a graph too
  bool has_ranges = false;  // mm-prefix
  bool has_flags = false;   // causal
  KVCacheDType cache_dtype = KVCacheDType::kAuto;
  KVSplits splits = KVSplits::kFixed;
};

// The lengths of a step; requests behind the last are padding.
using Lengths = std::vector<std::int32_t>;

// A layer with room for kSeqs requests of query_len tokens, and the buffers that its graph reads.
class GraphLayer {
 public:
  static constexpr std::int32_t kSeqs = 4, kHeads = 8, kKVHeads = 2, kBlock = 16, kBlocks = 180, kWidth = 44;
  static constexpr std::int32_t kLongest = kBlock * kWidth;

  explicit GraphLayer(const GraphSetup& setup) : setup_(setup), random_(17) {
    const Result<const AttentionBackend*> found = find_backend(setup.backend);
    require(found.status());
    backend_ = *found;
    Result<cuda::Stream> stream = cuda::Stream::create();
    require(stream.status());
    stream_ = std::move(*stream);
    spec_ = {.format = backend_->kv_cache_format(),
             .cache_dtype = setup.cache_dtype,
             .model_dtype = DType::kBFloat16,
             .num_blocks = kBlocks,
             .block_size = kBlock,
             .num_kv_heads = kKVHeads,
             .head_size = setup.head_size,
             .head_size_v = setup.head_size};
    cache_ = Twin(static_cast<std::size_t>(kv_cache_bytes(spec_).value()));
    const auto rows = [&](std::int32_t heads) {
      return Twin(static_cast<std::size_t>(tokens() * heads * setup_.head_size) * 2);
    };
    query_ = rows(kHeads), key_ = rows(kKVHeads), value_ = rows(kKVHeads), output_ = rows(kHeads);
    starts_ = Twin((kSeqs + 1) * 4), lens_ = Twin(kSeqs * 4), table_ = Twin(kSeqs * kWidth * 4);
    slots_ = Twin(static_cast<std::size_t>(tokens()) * 8);
    runtime_ = {.backplane = Backplane::kCuda, .stream = stream_.get(), .splits = setup.splits};
    layer_.kv_scales = {.k_scale = 0.05f, .v_scale = 0.05f, .k_scale_cache = {}, .v_scale_cache = {}};
    fill_cache();
  }

  std::int64_t tokens() const { return std::int64_t{kSeqs} * setup_.query_len; }
  void* stream() const { return stream_.get(); }
  std::vector<std::byte>& output() { return output_.host; }
  std::vector<std::byte>& cache() { return cache_.host; }
  const GraphSetup& setup() const { return setup_; }
  Twin& starts() { return starts_; }
  Twin& table() { return table_; }
  Twin& slots() { return slots_; }
  void fetch() {
    output_.fetch(stream());
    cache_.fetch(stream());
  }

  // The buffers of a step: random rows, lengths, blocks in random order, slots of the new tokens.
  void make_step(const Lengths& lengths) {
    for (Twin* rows : {&query_, &key_, &value_}) {
      for (std::size_t i = 0; i < rows->host.size() / 2; ++i) {
        store_from_float(rows->host.data(), DType::kBFloat16, static_cast<std::int64_t>(i),
                         static_cast<float>(2.0 * random_.uniform() - 1.0));
      }
    }
    std::vector<std::int32_t> ids;
    for (std::int32_t id = 1; id < kBlocks; ++id) ids.push_back(id);
    random_.shuffle(ids);
    std::memcpy(table_.host.data(), ids.data(), table_.host.size());
    std::fill_n(slots_.as<std::int64_t>(), tokens(), -1);
    starts_.as<std::int32_t>()[0] = 0;
    for (std::int32_t seq = 0; seq < kSeqs; ++seq) {
      const bool used = seq < static_cast<std::int32_t>(lengths.size());
      const std::int32_t begin = starts_.as<std::int32_t>()[seq];
      const std::int32_t len = used ? lengths[static_cast<std::size_t>(seq)] : 0;
      lens_.as<std::int32_t>()[seq] = len;
      starts_.as<std::int32_t>()[seq + 1] = begin + (used ? setup_.query_len : 0);
      for (std::int32_t row = 0; used && row < setup_.query_len; ++row) {
        const std::int32_t position = len - setup_.query_len + row;
        slots_.as<std::int64_t>()[begin + row] =
            std::int64_t{table_.as<std::int32_t>()[seq * kWidth + position / kBlock]} * kBlock + position % kBlock;
      }
    }
    make_terms(lengths);
    send();
  }
  // As before a step: the cache that both ways start from, and an output that nobody has written.
  void send() {
    std::fill(output_.host.begin(), output_.host.end(), std::byte{0x77});
    for (Twin* twin : {&query_, &key_, &value_, &starts_, &lens_, &table_, &slots_, &output_}) twin->send(stream());
  }
  void reset_cache(const std::vector<std::byte>& bytes) {
    cache_.host = bytes;
    cache_.send(stream());
  }

  // The batch of a step: of all kSeqs requests, padded ones included, or of the first `num_reqs` alone.
  CommonAttentionMetadata common_of(bool on_device, std::int32_t num_reqs) {
    const auto reqs = static_cast<std::size_t>(num_reqs);
    CommonAttentionMetadata common;
    common.query_start_loc_cpu = {starts_.as<std::int32_t>(), reqs + 1};
    common.seq_lens_cpu = {lens_.as<std::int32_t>(), reqs};
    common.num_reqs = num_reqs;
    common.num_actual_tokens = common.query_start_loc_cpu[reqs];
    common.max_query_len = setup_.query_len;
    common.max_seq_len = kLongest;
    common.block_table_tensor = table_.view(DType::kInt32, {kSeqs, kWidth}, on_device);
    common.slot_mapping = slots_.view(DType::kInt64, {tokens()}, on_device);
    if (setup_.has_trees) common.trees = {tree_of_.data(), reqs};
    if (setup_.has_flags) common.causal_per_seq = {flags_.data(), reqs};
    if (setup_.has_ranges) {
      common.mm_ranges = ranges_;
      common.mm_range_start = {range_start_.data(), reqs + 1};
    }
    if (on_device) {
      common.query_start_loc = starts_.view(DType::kInt32, {num_reqs + 1}, true);
      common.seq_lens = lens_.view(DType::kInt32, {num_reqs}, true);
    }
    return common;
  }
  Result<std::unique_ptr<AttentionMetadataBuilder>> make_builder(bool on_device) const {
    BuilderConfig config;
    config.num_heads = kHeads;
    config.num_kv_heads = kKVHeads;
    config.head_size = config.head_size_v = setup_.head_size;
    config.block_size = kBlock;
    config.num_blocks = kBlocks;
    config.runtime = on_device ? runtime_ : Runtime{.backplane = Backplane::kReference};
    return backend_->make_builder(config);
  }
  // The metadata of all kSeqs requests, padded ones included, or of the first `num_reqs` alone.
  Result<AttentionMetadata> build(bool on_device, std::int32_t num_reqs, bool for_capture) {
    QUIRE_ASSIGN_OR_RETURN(const auto builder, make_builder(on_device));
    const CommonAttentionMetadata common = common_of(on_device, num_reqs);
    return for_capture ? builder->build_for_cudagraph_capture(common) : builder->build(0, common);
  }
  Result<std::unique_ptr<AttentionImpl>> make_layer(bool on_device) const {
    ImplConfig config;
    config.num_heads = kHeads;
    config.num_kv_heads = kKVHeads;
    config.head_size = setup_.head_size;
    config.scale = 0.125f;
    config.kv_cache_dtype = setup_.cache_dtype;
    config.runtime = on_device ? runtime_ : Runtime{.backplane = Backplane::kReference};
    const auto size = static_cast<std::size_t>(setup_.head_size);
    const std::vector<float> lambda(size, 0.05f), norm(2 * size, 1.0f);
    if (spec_.format == KVCacheFormat::kDifferential) {
      config.differential = DifferentialConfig{};
      config.differential->lambda_q1 = config.differential->lambda_k1 = lambda;
      config.differential->lambda_q2 = config.differential->lambda_k2 = lambda;
      config.differential->subln_weight = norm;
    }
    return backend_->make_impl(config);
  }
  // Cache update, then attention.
  Status step(const AttentionImpl& impl, const AttentionMetadata& metadata, std::span<std::byte> workspace,
              bool on_device) {
    const std::int64_t size = setup_.head_size;
    const TensorView key = key_.view(DType::kBFloat16, {tokens(), kKVHeads, size}, on_device);
    const TensorView value = value_.view(DType::kBFloat16, {tokens(), kKVHeads, size}, on_device);
    ForwardArgs args;
    QUIRE_ASSIGN_OR_RETURN(args.kv_cache, view_kv_cache(spec_, on_device ? cache_.device.data() : cache_.host.data(),
                                                        on_device ? kDevice : Device{}));
    QUIRE_RETURN_IF_ERROR(impl.do_kv_cache_update(layer_, key, value, args.kv_cache, metadata.slot_mapping));
    args.query = query_.view(DType::kBFloat16, {tokens(), kHeads, size}, on_device);
    args.output = output_.view(DType::kBFloat16, {tokens(), kHeads, size}, on_device);
    args.metadata = &metadata;
    args.workspace = workspace;
    return impl.forward(layer_, args);
  }

 private:
  // Random rows at every slot.
  void fill_cache() {
    const std::int64_t slots = std::int64_t{kBlocks} * kBlock;
    std::vector<std::uint16_t> rows(static_cast<std::size_t>(slots * kKVHeads * setup_.head_size));
    for (std::uint16_t& value : rows) value = float_to_bf16(static_cast<float>(2.0 * random_.uniform() - 1.0));
    std::vector<std::int64_t> order(static_cast<std::size_t>(slots));
    std::iota(order.begin(), order.end(), 0);
    const TensorView tensor = make_tensor(rows.data(), DType::kBFloat16, {slots, kKVHeads, setup_.head_size}).value();
    const TensorView mapping = make_tensor(order.data(), DType::kInt64, {slots}).value();
    const KVSource cache =
        bind_kv_cache(spec_, view_kv_cache(spec_, cache_.host.data()).value(), layer_.kv_scales).value();
    require(reshape_and_cache_flash(tensor, tensor, cache, mapping));
    cache_.send(stream());
  }

  // Trees of random shapes, ranges and flags; each request of the first step, which is captured, has all of them,
  // others by chance.
  void make_terms(const Lengths& lengths) {
    trees_.clear();
    tree_of_.assign(kSeqs, nullptr);
    ranges_.clear();
    range_start_.assign(1, 0);
    flags_.clear();
    const double share = is_first_ ? 1.0 : 0.6;
    is_first_ = false;
    for (std::size_t seq = 0; seq < kSeqs; ++seq) {
      const bool used = seq < lengths.size();
      flags_.push_back(random_.chance(0.5) ? 1 : 0);
      if (used && (seq == 0 || random_.chance(share))) {  // without any range other kernels run
        const std::int32_t start = random_.between(0, lengths[seq] - 1);
        ranges_.push_back({start, start + random_.between(1, 40)});
      }
      range_start_.push_back(static_cast<std::int32_t>(ranges_.size()));
      if (!used || !random_.chance(share)) continue;
      std::vector<std::int32_t> parents;
      for (std::int32_t node = 1; node < setup_.query_len; ++node) parents.push_back(random_.between(0, node - 1));
      trees_.push_back(std::make_unique<TokenTree>(TokenTree::from_parents(parents).value()));
      tree_of_[seq] = trees_.back().get();
    }
  }

  GraphSetup setup_;
  Random random_;
  bool is_first_ = true;
  std::vector<std::unique_ptr<TokenTree>> trees_;
  std::vector<const TokenTree*> tree_of_;
  std::vector<MmRange> ranges_;
  std::vector<std::int32_t> range_start_;
  std::vector<std::uint8_t> flags_;
  const AttentionBackend* backend_ = nullptr;
  cuda::Stream stream_;
  KVCacheSpec spec_;
  Runtime runtime_;
  AttentionLayer layer_;
  Twin cache_, query_, key_, value_, output_, starts_, lens_, table_, slots_;
};

class GpuLayers : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string missing = missing_device(); !missing.empty()) GTEST_SKIP() << missing;
  }

  // The rows of requests that are there come close to the reference; those of padding are as they were.
  static void expect_close(const std::vector<std::byte>& got, const std::vector<std::byte>& want,
                           const std::string& what) {
    for (std::size_t i = 0; i < got.size() / 2; ++i) {
      const auto at = static_cast<std::int64_t>(i);
      const float a = load_as_float(got.data(), DType::kBFloat16, at);
      const float b = load_as_float(want.data(), DType::kBFloat16, at);
      ASSERT_NEAR(a, b, 0.01f + 0.02f * std::abs(b)) << what << " element " << i;
    }
  }

  static void replay_with_changes(const GraphSetup& setup) {
    GraphLayer layer(setup);
    const std::int32_t q = setup.query_len;
    const std::string what = std::string(setup.backend) + " queries of " + std::to_string(q) + " head size " +
                             std::to_string(setup.head_size) + " " +
                             std::string(kv_cache_dtype_name(setup.cache_dtype));
    layer.make_step({q, q, q, q});
    const auto builder = layer.make_builder(true);
    require(builder.status());
    const auto captured = (*builder)->build_for_cudagraph_capture(layer.common_of(true, GraphLayer::kSeqs));
    ASSERT_TRUE(captured.ok()) << captured.status().to_string();
    const auto impl = layer.make_layer(true);
    const auto reference = layer.make_layer(false);
    require(impl.status());
    require(reference.status());
    Twin workspace(std::max<std::size_t>((*impl)->workspace_bytes(*captured), 1), std::byte{0xff});
    require(layer.step(**impl, *captured, workspace.device.bytes(), true));  // loads the kernels
    require(cuda::check(layer.stream()));
    const auto graph = cuda::CapturedGraph::capture(
        layer.stream(), [&] { return layer.step(**impl, *captured, workspace.device.bytes(), true); });
    ASSERT_TRUE(graph.ok()) << graph.status().to_string();
    layer.fetch();
    const std::vector<std::byte> cache = layer.cache();
    const std::vector<Lengths> steps = {
        {q, 300, 650, std::max(q, 64)}, {700}, {q + 1, 17 + q, 16 + q}, {GraphLayer::kLongest, 333}};
    for (const Lengths& lengths : steps) {
      layer.make_step(lengths);
      layer.reset_cache(cache);
      const auto reqs = static_cast<std::int32_t>(lengths.size());
      if (setup.has_trees || setup.has_ranges || setup.has_flags) {
        require((*builder)->update_for_cudagraph_replay(*captured, layer.common_of(true, reqs)));
      }
      require(graph->replay(layer.stream()));
      require(cuda::check(layer.stream()));
      layer.fetch();
      const std::vector<std::byte> replayed = layer.output();
      const std::vector<std::byte> stored = layer.cache();

      // The same step as a call of its own, without padded requests.
      layer.send();
      layer.reset_cache(cache);
      const auto direct = layer.build(true, reqs, false);
      ASSERT_TRUE(direct.ok()) << direct.status().to_string();
      Twin scratch(std::max<std::size_t>((*impl)->workspace_bytes(*direct), 1), std::byte{0xff});
      require(layer.step(**impl, *direct, scratch.device.bytes(), true));
      require(cuda::check(layer.stream()));
      layer.fetch();
      EXPECT_EQ(layer.cache(), stored) << what;
      if (setup.splits == KVSplits::kFixed) {
        EXPECT_EQ(layer.output(), replayed) << what;
      }

      // And by the reference on the host.
      layer.send();
      layer.reset_cache(cache);
      const auto on_host = layer.build(false, reqs, false);
      ASSERT_TRUE(on_host.ok()) << on_host.status().to_string();
      require(layer.step(**reference, *on_host, {}, false));
      EXPECT_EQ(layer.cache(), stored) << what;
      expect_close(replayed, layer.output(), what);
    }
  }
};

TEST_F(GpuLayers, GraphsReplayWithChangedMetadata) {
  for (const KVSplits splits : {KVSplits::kFixed, KVSplits::kBalanced}) {
    for (const std::string_view backend :
         {"TRITON_ATTN", "TRITON_ATTN_DIFFKV", "XFORMERS", "DIFFERENTIAL_FLASH_ATTN"}) {
      for (const std::int32_t query_len : {1, 40}) {
        replay_with_changes({.backend = backend, .query_len = query_len, .splits = splits});
      }
    }
    replay_with_changes({.query_len = 1, .cache_dtype = KVCacheDType::kFp8E4M3, .splits = splits});
    replay_with_changes({.query_len = 3, .cache_dtype = KVCacheDType::kInt8PerTokenHead, .splits = splits});
    replay_with_changes({.query_len = 2, .head_size = 72, .splits = splits});  // the plain kernel
  }
}

TEST_F(GpuLayers, GraphsReplayWithOtherTerms) {
  for (const KVSplits splits : {KVSplits::kFixed, KVSplits::kBalanced}) {
    for (const std::int32_t query_len : {4, 40, 70}) {
      replay_with_changes({.backend = "TREE_ATTN", .query_len = query_len, .has_trees = true, .splits = splits});
    }
    for (const std::int32_t query_len : {1, 40}) {
      replay_with_changes({.query_len = query_len, .has_ranges = true, .splits = splits});
      replay_with_changes({.query_len = query_len, .has_flags = true, .splits = splits});
    }
  }
}

// What a capture has no room for is refused.
TEST_F(GpuLayers, UpdatesStayWithinTheCapture) {
  const auto refusal = [](const GraphSetup& captured_with, const GraphSetup& updated_with) {
    GraphLayer small(captured_with);
    GraphLayer large(updated_with);
    small.make_step({100, 200, 300, 400});
    large.make_step({100, 200, 300, 400});
    const auto builder = small.make_builder(true);
    require(builder.status());
    const auto captured = (*builder)->build_for_cudagraph_capture(small.common_of(true, 4));
    require(captured.status());
    return (*builder)->update_for_cudagraph_replay(*captured, large.common_of(true, 4)).to_string();
  };
  EXPECT_NE(refusal({.backend = "TREE_ATTN", .query_len = 8}, {.backend = "TREE_ATTN", .query_len = 9})
                .find("common.max_query_len: want at most 8, as the graph was captured with, got 9"),
            std::string::npos);
  EXPECT_NE(refusal({}, {.has_ranges = true}).find("ranges of a request: want at most 0"), std::string::npos);
  EXPECT_NE(refusal({}, {.has_flags = true}).find("common.causal: want what the graph was captured with"),
            std::string::npos);
  EXPECT_NE(refusal({}, {.has_trees = true}).find("common.trees: not supported by TRITON_ATTN"), std::string::npos);
}

TEST_F(GpuLayers, CaptureWantsLengthsOnTheDevice) {
  BuilderConfig config;
  config.num_heads = config.num_kv_heads = 4;
  config.head_size = 64;
  config.num_blocks = 4;
  config.runtime.backplane = Backplane::kCuda;
  const auto builder = find_backend("TRITON_ATTN").value()->make_builder(config);
  require(builder.status());
  const std::vector<std::int32_t> starts = {0, 1}, lens = {5};
  CommonAttentionMetadata common;
  common.query_start_loc_cpu = starts;
  common.seq_lens_cpu = lens;
  common.num_reqs = common.num_actual_tokens = common.max_query_len = 1;
  common.max_seq_len = 5;
  const Status status = (*builder)->build_for_cudagraph_capture(common).status();
  EXPECT_NE(status.message().find("common.query_start_loc: want a tensor on the device"), std::string::npos);
  std::vector<std::int32_t> table = {1};
  common.block_table_tensor = make_tensor(table.data(), DType::kInt32, {1, 1}).value();
  EXPECT_NE((*builder)->build(0, common).status().message().find("block_table.device: want cuda"), std::string::npos);
}

// What is wrong on the device comes back from the layer's next call, or from check(), with the request's index.
TEST_F(GpuLayers, FaultsComeBackThroughTheLayer) {
  GraphLayer layer({});
  layer.make_step({100, 200, 300, 400});
  const auto impl = layer.make_layer(true);
  const auto metadata = layer.build(true, GraphLayer::kSeqs, false);
  require(impl.status());
  require(metadata.status());
  Twin workspace(std::max<std::size_t>((*impl)->workspace_bytes(*metadata), 1));
  layer.table().as<std::int32_t>()[2 * GraphLayer::kWidth + 5] = 1 << 20;
  layer.table().send(layer.stream());
  require(layer.step(**impl, *metadata, workspace.device.bytes(), true));
  require(cuda::synchronize(layer.stream()));
  const Status next = layer.step(**impl, *metadata, workspace.device.bytes(), true);
  EXPECT_EQ(next.code(), StatusCode::kOutOfRange);
  EXPECT_NE(next.message().find("block_table[2]: want block ids in [0, 180), got 1048576"), std::string::npos)
      << next.message();
  require(cuda::synchronize(layer.stream()));
  static_cast<void>(cuda::check(layer.stream()));
  layer.slots().as<std::int64_t>()[3] = GraphLayer::kBlocks * GraphLayer::kBlock;
  layer.slots().send(layer.stream());
  static_cast<void>(layer.step(**impl, *metadata, workspace.device.bytes(), true));
  EXPECT_NE(cuda::check(layer.stream()).message().find("slot_mapping[3]: want a slot below 2880"), std::string::npos);
}

// A replay whose requests are longer than any that was captured would leave rows unwritten: it says so.
TEST_F(GpuLayers, LongerQueriesThanPlannedAreAFault) {
  GraphLayer layer({});
  layer.make_step({100, 200, 300, 400});
  const auto impl = layer.make_layer(true);
  const auto metadata = layer.build(true, GraphLayer::kSeqs, true);
  require(impl.status());
  require(metadata.status());
  Twin workspace(std::max<std::size_t>((*impl)->workspace_bytes(*metadata), 1));
  const std::vector<std::int32_t> starts = {0, 1, 3, 4, 4};
  std::memcpy(layer.starts().host.data(), starts.data(), layer.starts().host.size());
  layer.starts().send(layer.stream());
  require(layer.step(**impl, *metadata, workspace.device.bytes(), true));
  const Status status = cuda::check(layer.stream());
  EXPECT_EQ(status.code(), StatusCode::kOutOfRange);
  EXPECT_NE(status.message().find("query_start_loc[1]: want at most 1 tokens"), std::string::npos) << status.message();
}

}  // namespace
}  // namespace quire::testing
