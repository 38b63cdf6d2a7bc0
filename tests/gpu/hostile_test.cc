// Layers of all backends on metadata that is wrong on the device: faults are named, and in one allocation that holds
// everything between guards no byte changes that should not; and pages full of NaN that nobody owns change no result.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/convert.h"
#include "gpu/device_case.h"
#include "quire/backend.h"
#include "quire/cuda.h"
#include "support/random.h"

namespace quire::testing {
namespace {

constexpr std::size_t kArenaGuard = 64 * 1024;
// What guards hold, in one run and in another: as keys and values the second are NaN in all floating-point formats.
constexpr std::byte kUntouched{0xa5}, kNanBytes{0xff};
constexpr std::int32_t kHostileSeqs = 3, kQueryHeads = 8, kPageTokens = 16, kPages = 64, kTableWidth = 20;
constexpr std::int32_t kHostileLens[kHostileSeqs] = {300, 77, 120};

void expect_fine(const Status& status) { ASSERT_TRUE(status.ok()) << status.to_string(); }

// Arrays in one device allocation, each between guards.
class Arena {
 public:
  std::size_t add(std::size_t bytes) {
    const std::size_t begin = image_.size() + kArenaGuard;
    image_.resize((begin + bytes + 255) / 256 * 256 + kArenaGuard, kUntouched);
    arrays_.emplace_back(begin, bytes);
    return begin;
  }
  template <class T>
  T* host(std::size_t offset) {
    return reinterpret_cast<T*>(image_.data() + offset);
  }
  void* device(std::size_t offset) const { return memory_.bytes().data() + offset; }
  std::vector<std::byte>& image() { return image_; }
  void fill_guards(std::byte value) {
    std::size_t end = 0;
    for (const auto& [begin, bytes] : arrays_) {
      std::fill_n(image_.begin() + static_cast<std::ptrdiff_t>(end), begin - end, value);
      end = begin + bytes;
    }
    std::fill(image_.begin() + static_cast<std::ptrdiff_t>(end), image_.end(), value);
  }
  void send() {
    if (memory_.size() == 0) {
      Result<cuda::DeviceBuffer> buffer = cuda::DeviceBuffer::allocate(image_.size());
      expect_fine(buffer.status());
      memory_ = std::move(*buffer);
    }
    expect_fine(cuda::copy_to_device(memory_.data(), image_.data(), image_.size(), nullptr));
  }
  std::vector<std::byte> fetch() const {
    std::vector<std::byte> bytes(image_.size());
    expect_fine(cuda::copy_to_host(bytes.data(), memory_.data(), bytes.size(), nullptr));
    return bytes;
  }

 private:
  std::vector<std::byte> image_;
  std::vector<std::pair<std::size_t, std::size_t>> arrays_;  // first byte and size of each
  cuda::DeviceBuffer memory_;
};

struct HostileSetup {
  std::string_view backend;
  std::int32_t query_len = 1;
  KVCacheDType cache_dtype = KVCacheDType::kAuto;
  std::byte stale{0};          // what the cache holds where nobody has stored
  std::int32_t row_size = 64;  // 72 is the plain kernel's
};

// A layer with its metadata, built while everything was right.
class HostileLayer {
 public:
  explicit HostileLayer(const HostileSetup& setup) : setup_(setup) {
    backend_ = find_backend(setup.backend).value();
    is_differential_ = backend_->kv_cache_format() == KVCacheFormat::kDifferential;
    kv_heads_ = is_differential_ ? 4 : 2;
    spec_ = {.format = backend_->kv_cache_format(),
             .cache_dtype = setup.cache_dtype,
             .model_dtype = DType::kBFloat16,
             .num_blocks = kPages,
             .block_size = kPageTokens,
             .num_kv_heads = kv_heads_,
             .head_size = setup_.row_size,
             .head_size_v = setup_.row_size};
    cache_bytes_ = static_cast<std::size_t>(kv_cache_bytes(spec_).value());
    cache = arena.add(cache_bytes_);
    output_bytes_ = static_cast<std::size_t>(tokens() * kQueryHeads * setup_.row_size) * 2;
    output = arena.add(output_bytes_);
    query_ = arena.add(output_bytes_);
    key_ = arena.add(static_cast<std::size_t>(tokens() * kv_heads_ * setup_.row_size) * 2);
    value_ = arena.add(static_cast<std::size_t>(tokens() * kv_heads_ * setup_.row_size) * 2);
    starts = arena.add((kHostileSeqs + 1) * 4);
    lens = arena.add(kHostileSeqs * 4);
    table = arena.add(kHostileSeqs * kTableWidth * 4);
    slots = arena.add(static_cast<std::size_t>(tokens()) * 8);
    make_arrays();
    make_layer();
  }

  Arena arena;
  std::size_t cache = 0, output = 0, starts = 0, lens = 0, table = 0, slots = 0;

  std::int64_t tokens() const { return std::int64_t{kHostileSeqs} * setup_.query_len; }
  std::size_t output_bytes() const { return output_bytes_; }
  // Output rows of a request, out of what run() returns.
  std::vector<std::byte> output_of(const std::vector<std::byte>& all, std::int32_t seq) const {
    const std::size_t bytes = output_bytes_ / kHostileSeqs;
    const auto begin = all.begin() + static_cast<std::ptrdiff_t>(output + static_cast<std::size_t>(seq) * bytes);
    return {begin, begin + static_cast<std::ptrdiff_t>(bytes)};
  }

  // Sends the arrays as they are on the host now, updates the cache and attends; what comes back is the arena.
  std::vector<std::byte> run(Status& fault) {
    arena.send();
    ForwardArgs args;
    args.kv_cache = view_kv_cache(spec_, arena.device(cache), kDevice).value();
    const TensorView key = rows(key_, kv_heads_), value = rows(value_, kv_heads_);
    expect_fine(impl_->do_kv_cache_update(layer_, key, value, args.kv_cache, metadata_.slot_mapping));
    fault = cuda::check(nullptr);
    args.query = rows(query_, kQueryHeads);
    args.output = rows(output, kQueryHeads);
    args.metadata = &metadata_;
    args.workspace = workspace_.bytes();
    expect_fine(impl_->forward(layer_, args));
    const Status attention = cuda::check(nullptr);
    if (fault.ok()) fault = attention;
    return arena.fetch();
  }
  // The cache as the host updates it, with the slots as they are now but for those that no cache has.
  std::vector<std::byte> expected_cache() {
    std::vector<std::byte> bytes(arena.host<std::byte>(cache), arena.host<std::byte>(cache) + cache_bytes_);
    std::vector<std::int64_t> good(arena.host<std::int64_t>(slots), arena.host<std::int64_t>(slots) + tokens());
    for (std::int64_t& slot : good) slot = slot >= 0 && slot < std::int64_t{kPages} * kPageTokens ? slot : -1;
    const auto row = [&](std::size_t at) {
      return make_tensor(arena.host<void>(at), DType::kBFloat16, {tokens(), kv_heads_, setup_.row_size}).value();
    };
    const KVSource source = bind_kv_cache(spec_, view_kv_cache(spec_, bytes.data()).value(), layer_.kv_scales).value();
    expect_fine(reshape_and_cache_flash(row(key_), row(value_), source,
                                        make_tensor(good.data(), DType::kInt64, {tokens()}).value()));
    return bytes;
  }
  // Everything but the output and the cache is as it was sent; the cache is what it should be.
  void expect_intact(const std::vector<std::byte>& got, const std::string& what) {
    std::vector<std::byte> want = arena.image();
    std::copy_n(got.begin() + static_cast<std::ptrdiff_t>(output), output_bytes_,
                want.begin() + static_cast<std::ptrdiff_t>(output));
    const std::vector<std::byte> stored = expected_cache();
    std::copy(stored.begin(), stored.end(), want.begin() + static_cast<std::ptrdiff_t>(cache));
    const auto differ = std::mismatch(got.begin(), got.end(), want.begin()).first;
    EXPECT_TRUE(differ == got.end()) << what << ": byte " << differ - got.begin() << " of the allocation changed";
  }

 private:
  TensorView rows(std::size_t at, std::int64_t heads) const {
    return make_tensor(arena.device(at), DType::kBFloat16, {tokens(), heads, setup_.row_size}, kDevice).value();
  }

  void make_arrays() {
    Random random(23);
    for (const std::size_t at : {query_, key_, value_}) {
      const std::int64_t count = tokens() * (at == query_ ? kQueryHeads : kv_heads_) * setup_.row_size;
      for (std::int64_t i = 0; i < count; ++i) {
        store_from_float(arena.host<void>(at), DType::kBFloat16, i, static_cast<float>(2.0 * random.uniform() - 1.0));
      }
    }
    std::vector<std::int32_t> ids;
    for (std::int32_t id = 0; id < kPages; ++id) ids.push_back(id);
    random.shuffle(ids);
    auto next = ids.begin();
    std::fill_n(arena.host<std::byte>(cache), cache_bytes_, setup_.stale);
    std::vector<std::int64_t> owned;
    for (std::int32_t seq = 0; seq < kHostileSeqs; ++seq) {
      auto* const row = arena.host<std::int32_t>(table) + seq * kTableWidth;
      std::fill_n(row, kTableWidth, 1 << 30);  // entries behind the request's keys are not read
      for (std::int32_t i = 0; i * kPageTokens < kHostileLens[seq]; ++i) row[i] = *next++;
      arena.host<std::int32_t>(lens)[seq] = kHostileLens[seq];
      arena.host<std::int32_t>(starts)[seq + 1] = (seq + 1) * setup_.query_len;
      for (std::int32_t position = 0; position < kHostileLens[seq]; ++position) {
        const std::int64_t slot = std::int64_t{row[position / kPageTokens]} * kPageTokens + position % kPageTokens;
        const std::int32_t token = position - (kHostileLens[seq] - setup_.query_len);
        if (token < 0) owned.push_back(slot);
        if (token >= 0) arena.host<std::int64_t>(slots)[seq * setup_.query_len + token] = slot;
      }
    }
    arena.host<std::int32_t>(starts)[0] = 0;
    store_context(owned, random);
  }

  // Random rows at the slots that the requests' contexts have.
  void store_context(const std::vector<std::int64_t>& owned, Random& random) {
    const auto count = static_cast<std::int64_t>(owned.size());
    std::vector<std::uint16_t> values(static_cast<std::size_t>(count * kv_heads_ * setup_.row_size));
    for (std::uint16_t& value : values) value = float_to_bf16(static_cast<float>(2.0 * random.uniform() - 1.0));
    std::vector<std::int64_t> mapping = owned;
    const TensorView tensor = make_tensor(values.data(), DType::kBFloat16, {count, kv_heads_, setup_.row_size}).value();
    const KVSource source =
        bind_kv_cache(spec_, view_kv_cache(spec_, arena.host<void>(cache)).value(), layer_.kv_scales).value();
    expect_fine(
        reshape_and_cache_flash(tensor, tensor, source, make_tensor(mapping.data(), DType::kInt64, {count}).value()));
  }

  void make_layer() {
    ImplConfig config;
    config.num_heads = kQueryHeads;
    config.num_kv_heads = kv_heads_;
    config.head_size = setup_.row_size;
    config.scale = 0.125f;
    config.kv_cache_dtype = setup_.cache_dtype;
    config.runtime = {.backplane = Backplane::kCuda};
    const std::vector<float> lambda(setup_.row_size, 0.05f), norm(2 * setup_.row_size, 1.0f);
    if (is_differential_) {
      config.differential = DifferentialConfig{};
      config.differential->lambda_q1 = config.differential->lambda_k1 = lambda;
      config.differential->lambda_q2 = config.differential->lambda_k2 = lambda;
      config.differential->subln_weight = norm;
    }
    Result<std::unique_ptr<AttentionImpl>> impl = backend_->make_impl(config);
    expect_fine(impl.status());
    impl_ = std::move(*impl);
    BuilderConfig shapes;
    shapes.num_heads = kQueryHeads;
    shapes.num_kv_heads = kv_heads_;
    shapes.head_size = shapes.head_size_v = setup_.row_size;
    shapes.block_size = kPageTokens;
    shapes.num_blocks = kPages;
    shapes.runtime = config.runtime;
    arena.send();
    CommonAttentionMetadata common;
    common.query_start_loc_cpu = {arena.host<std::int32_t>(starts), kHostileSeqs + 1};
    common.seq_lens_cpu = {arena.host<std::int32_t>(lens), kHostileSeqs};
    common.num_reqs = kHostileSeqs;
    common.num_actual_tokens = static_cast<std::int32_t>(tokens());
    common.max_query_len = setup_.query_len;
    common.max_seq_len = kPageTokens * kTableWidth;
    const auto view = [&](std::size_t at, DType dtype, std::initializer_list<std::int64_t> shape) {
      return make_tensor(arena.device(at), dtype, shape, kDevice).value();
    };
    common.query_start_loc = view(starts, DType::kInt32, {kHostileSeqs + 1});
    common.seq_lens = view(lens, DType::kInt32, {kHostileSeqs});
    common.block_table_tensor = view(table, DType::kInt32, {kHostileSeqs, kTableWidth});
    common.slot_mapping = view(slots, DType::kInt64, {tokens()});
    Result<AttentionMetadata> metadata = backend_->make_builder(shapes).value()->build_for_cudagraph_capture(common);
    expect_fine(metadata.status());
    metadata_ = std::move(*metadata);
    workspace_ = cuda::DeviceBuffer::allocate(std::max<std::size_t>(impl_->workspace_bytes(metadata_), 1)).value();
  }

  HostileSetup setup_;
  const AttentionBackend* backend_ = nullptr;
  bool is_differential_ = false;
  std::int32_t kv_heads_ = 2;
  KVCacheSpec spec_;
  AttentionLayer layer_{.kv_scales = {.k_scale = 0.05f, .v_scale = 0.05f, .k_scale_cache = {}, .v_scale_cache = {}}};
  std::size_t cache_bytes_ = 0, output_bytes_ = 0, query_ = 0, key_ = 0, value_ = 0;
  std::unique_ptr<AttentionImpl> impl_;
  AttentionMetadata metadata_;
  cuda::DeviceBuffer workspace_;
};

// One wrong number.
struct Poison {
  std::string_view array;
  std::int64_t index = 0;
  std::int64_t value = 0;
  std::string_view fault;     // what the message has; empty: none
  std::int32_t request = -1;  // the only one whose rows may change; -1: any may
  bool is_longer = false;     // twice the tokens of the plan's longest request
};

constexpr Poison kPoisons[] = {
    {"table", kTableWidth + 3, 1 << 30, "block_table[1]", 1},
    {"table", 0, -5, "block_table[0]", 0},
    {"table", 2 * kTableWidth + 1, kPages, "block_table[2]", 2},
    {"table", 1, std::numeric_limits<std::int32_t>::min(), "block_table[0]", 0},
    {"lens", 1, 1 << 29, "seq_lens[1]"},
    {"lens", 1, kTableWidth* kPageTokens + 1, "seq_lens[1]"},
    {"lens", 0, -1, "seq_lens[0]"},
    {"starts", 1, 0, "query_start_loc[1]", -1, true},
    {"starts", 2, 1 << 20, "query_start_loc[1]"},
    {"starts", 1, -3, "query_start_loc"},
    {"slots", 0, std::int64_t{kPages} * kPageTokens, "slot_mapping[0]", 0},
    {"slots", 1, std::int64_t{1} << 40, "slot_mapping[1]"},
    {"slots", 2, std::numeric_limits<std::int64_t>::max(), "slot_mapping[2]"},
    {"slots", 2, std::numeric_limits<std::int64_t>::min(), ""},
};

class GpuHostile : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (const std::string missing = missing_device(); !missing.empty()) GTEST_SKIP() << missing;
  }
  static std::vector<HostileSetup> setups() {
    std::vector<HostileSetup> all;
    for (const std::int32_t query_len : {1, 3, 40}) {
      for (const KVCacheDType dtype : {KVCacheDType::kAuto, KVCacheDType::kFp8E4M3, KVCacheDType::kInt8PerTokenHead}) {
        const auto known = find_backend(GetParam()).value()->supported_kv_cache_dtypes();
        if (std::find(known.begin(), known.end(), dtype) == known.end()) continue;
        all.push_back({.backend = GetParam(), .query_len = query_len, .cache_dtype = dtype});
      }
    }
    all.push_back({.backend = GetParam(), .query_len = 3, .row_size = 72});
    return all;
  }
};

void inject(HostileLayer& layer, const Poison& poison) {
  if (poison.array == "slots") {
    layer.arena.host<std::int64_t>(layer.slots)[poison.index] = poison.value;
    return;
  }
  const std::size_t array = poison.array == "table" ? layer.table : poison.array == "lens" ? layer.lens : layer.starts;
  layer.arena.host<std::int32_t>(array)[poison.index] = static_cast<std::int32_t>(poison.value);
}

void expect_fault(const Status& fault, const Poison& poison) {
  if (poison.fault.empty()) {
    EXPECT_TRUE(fault.ok()) << fault.to_string();
    return;
  }
  EXPECT_EQ(fault.code(), StatusCode::kOutOfRange);
  EXPECT_NE(fault.message().find(poison.fault), std::string::npos) << fault.message();
}

// Nothing outside is written or, as far as results tell, read: they are the same whatever lies there. A request whose
// own metadata is right gets what it gets without the wrong number.
TEST_P(GpuHostile, WrongMetadataTouchesNothingOutside) {
  for (const HostileSetup& setup : setups()) {
    HostileLayer layer(setup);
    const std::vector<std::byte> image = layer.arena.image();
    Status fault;
    const std::vector<std::byte> clean = layer.run(fault);
    expect_fine(fault);
    for (const Poison& poison : kPoisons) {
      if (poison.is_longer && setup.query_len == 3) continue;  // six tokens have room where three have
      const std::string what = std::string(setup.backend) + " " + std::string(kv_cache_dtype_name(setup.cache_dtype)) +
                               " queries of " + std::to_string(setup.query_len) + ", rows of " +
                               std::to_string(setup.row_size) + ", " + std::string(poison.array) + "[" +
                               std::to_string(poison.index) + "] = " + std::to_string(poison.value);
      SCOPED_TRACE(what);
      std::vector<std::byte> outputs[2];
      for (const std::byte guard : {kUntouched, kNanBytes}) {
        layer.arena.image() = image;
        layer.arena.fill_guards(guard);
        inject(layer, poison);
        const std::vector<std::byte> got = layer.run(fault);
        layer.expect_intact(got, what);
        expect_fault(fault, poison);
        for (std::int32_t seq = 0; seq < kHostileSeqs; ++seq) {
          const std::vector<std::byte> rows = layer.output_of(got, seq);
          std::vector<std::byte>& all = outputs[guard == kUntouched ? 0 : 1];
          all.insert(all.end(), rows.begin(), rows.end());
          if (poison.request < 0 || poison.request == seq) continue;
          EXPECT_EQ(rows, layer.output_of(clean, seq)) << "request " << seq;
        }
      }
      EXPECT_EQ(outputs[0], outputs[1]) << "what lies outside changed a result";
    }
  }
}

// 0xff in every byte is NaN in all floating-point formats and scales.
TEST_P(GpuHostile, StalePagesChangeNoBit) {
  for (HostileSetup setup : setups()) {
    const auto output_of = [&](std::byte stale) {
      setup.stale = stale;
      HostileLayer layer(setup);
      Status fault;
      const std::vector<std::byte> all = layer.run(fault);
      expect_fine(fault);
      const auto begin = all.begin() + static_cast<std::ptrdiff_t>(layer.output);
      return std::vector<std::byte>(begin, begin + static_cast<std::ptrdiff_t>(layer.output_bytes()));
    };
    const std::vector<std::byte> clean = output_of(std::byte{0});
    EXPECT_EQ(output_of(std::byte{0xff}), clean);
    for (std::size_t i = 0; i < clean.size() / 2; ++i) {
      ASSERT_TRUE(std::isfinite(load_as_float(clean.data(), DType::kBFloat16, static_cast<std::int64_t>(i))));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, GpuHostile,
                         ::testing::Values("TREE_ATTN", "XFORMERS", "TRITON_ATTN", "TRITON_ATTN_DIFFKV",
                                           "DIFFERENTIAL_FLASH_ATTN"),
                         [](const auto& backend) { return std::string(backend.param); });

}  // namespace
}  // namespace quire::testing
