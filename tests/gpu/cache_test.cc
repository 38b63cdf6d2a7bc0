// The cache update on the device against the CPU's, byte for byte: every format, layout, codec and source, with
// rotation.
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "core/convert.h"
#include "gpu/device_case.h"
#include "quire/cuda.h"
#include "quire/kv_cache.h"

namespace quire::testing {
namespace {

void expect_ok(const Status& status) { ASSERT_TRUE(status.ok()) << status.to_string(); }

// A host array and its copy on the device.
struct Mirror {
  std::vector<std::byte> host;
  cuda::DeviceBuffer device;

  explicit Mirror(std::size_t bytes) : host(bytes) {}
  void send() {
    Result<cuda::DeviceBuffer> buffer = cuda::DeviceBuffer::allocate(host.size());
    expect_ok(buffer.status());
    device = std::move(*buffer);
    expect_ok(cuda::copy_to_device(device.data(), host.data(), host.size(), nullptr));
  }
  std::vector<std::byte> fetch() const {
    std::vector<std::byte> bytes(host.size());
    expect_ok(cuda::copy_to_host(bytes.data(), device.data(), bytes.size(), nullptr));
    return bytes;
  }
};

TensorView view(void* data, DType dtype, std::initializer_list<std::int64_t> shape, Device device) {
  Result<TensorView> tensor = make_tensor(data, dtype, shape, device);
  EXPECT_TRUE(tensor.ok());
  return *tensor;
}

struct StoreCase {
  KVCacheFormat format = KVCacheFormat::kBlockFirst;
  KVCacheLayout layout = KVCacheLayout::kNHD;
  KVCacheDType cache_dtype = KVCacheDType::kAuto;
  DType dtype = DType::kBFloat16;
  std::int32_t head_size = 128;
  std::int32_t head_size_v = 128;
  bool rotates = false;
  RopeStyle style = RopeStyle::kNeox;
  std::int32_t rotary_dim = 64;
  DType angle_dtype = DType::kFloat32;
  std::int64_t tokens = 37;
  double special_share = 0.0;  // of NaNs, infinities and numbers near the ends of ranges
};

class GpuCache : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string missing = missing_device(); !missing.empty()) GTEST_SKIP() << missing;
  }

  static constexpr std::int32_t kHeads = 5;

  static void fill(Mirror& mirror, DType dtype, std::int64_t count, Random& random, double special_share = 0.0,
                   float infinity = 0.0f) {
    constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
    for (std::int64_t i = 0; i < count; ++i) {
      float value = static_cast<float>(4.0 * random.uniform() - 2.0);
      if (special_share > 0.0 && random.chance(special_share)) {
        value = random.pick({kNaN, -kNaN, infinity, -infinity, 6e4f, -6e4f, 1e-40f, 14.0f});
      }
      store_from_float(mirror.host.data(), dtype, i, value);
    }
  }

  void run(const StoreCase& c) {
    Random random(static_cast<std::uint64_t>(c.head_size) * 31 + static_cast<std::uint64_t>(c.cache_dtype));
    const std::int32_t heads = c.format == KVCacheFormat::kDifferential ? 4 : kHeads;
    const std::int64_t num_blocks = c.tokens / 16 + 7;
    const KVCacheSpec spec{.format = c.format,
                           .layout = c.layout,
                           .cache_dtype = c.cache_dtype,
                           .model_dtype = c.dtype,
                           .num_blocks = num_blocks,
                           .block_size = 16,
                           .num_kv_heads = heads,
                           .head_size = c.head_size,
                           .head_size_v = c.head_size_v};
    const auto element = static_cast<std::size_t>(dtype_bytes(c.dtype));
    const auto keys = c.tokens * heads * c.head_size;
    const auto values = c.tokens * heads * c.head_size_v;
    Mirror key(static_cast<std::size_t>(keys) * element), value(static_cast<std::size_t>(values) * element);
    Mirror query(static_cast<std::size_t>(2 * keys) * element);
    const float infinity = is_per_token_head(c.cache_dtype) ? 1e4f : std::numeric_limits<float>::infinity();
    fill(key, c.dtype, keys, random, c.special_share, infinity);
    fill(value, c.dtype, values, random, c.special_share, infinity);
    fill(query, c.dtype, 2 * keys, random);
    Result<std::int64_t> bytes = kv_cache_bytes(spec);
    ASSERT_TRUE(bytes.ok()) << bytes.status().to_string();
    Mirror cache(static_cast<std::size_t>(*bytes));
    std::memset(cache.host.data(), 0x11, cache.host.size());
    Mirror slots(static_cast<std::size_t>(c.tokens) * 8), positions(static_cast<std::size_t>(c.tokens) * 8),
        angles(64 * 64 * 4);
    std::vector<std::int64_t> order(static_cast<std::size_t>(num_blocks) * 16);
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int64_t>(i);
    random.shuffle(order);
    for (std::int64_t i = 0; i < c.tokens; ++i) {
      const std::int64_t slot = random.chance(0.2) ? -1 : order[static_cast<std::size_t>(i)];
      const std::int64_t position = random.between(0, 63);
      std::memcpy(slots.host.data() + i * 8, &slot, 8);
      std::memcpy(positions.host.data() + i * 8, &position, 8);
    }
    for (int i = 0; i < 64 * 64; ++i) {
      store_from_float(angles.host.data(), c.angle_dtype, i, static_cast<float>(2.0 * random.uniform() - 1.0));
    }
    for (Mirror* mirror : {&key, &value, &query, &cache, &slots, &positions, &angles}) mirror->send();
    const auto update = [&](bool on_device) {
      const Device device = on_device ? kDevice : Device{};
      const auto at = [&](Mirror& m) { return on_device ? m.device.data() : static_cast<void*>(m.host.data()); };
      Result<TensorView> cache_view = view_kv_cache(spec, at(cache), device);
      EXPECT_TRUE(cache_view.ok());
      Result<KVSource> source = bind_kv_cache(spec, *cache_view, {.k_scale = 0.03f, .v_scale = 0.07f});
      EXPECT_TRUE(source.ok());
      const TensorView k = view(at(key), c.dtype, {c.tokens, heads, c.head_size}, device);
      const TensorView v = view(at(value), c.dtype, {c.tokens, heads, c.head_size_v}, device);
      const TensorView s = view(at(slots), DType::kInt64, {c.tokens}, device);
      const RopeArgs rope{.query = view(at(query), c.dtype, {c.tokens, 2 * heads, c.head_size}, device),
                          .positions = view(at(positions), DType::kInt64, {c.tokens}, device),
                          .cos_sin_cache = view(at(angles), c.angle_dtype, {64, c.rotary_dim}, device),
                          .style = c.style};
      if (on_device && c.rotates) return cuda::rope_and_cache_flash(rope, k, v, *source, s, nullptr);
      if (on_device) return cuda::reshape_and_cache_flash(k, v, *source, s, nullptr);
      return c.rotates ? quire::rope_and_cache_flash(rope, k, v, *source, s)
                       : quire::reshape_and_cache_flash(k, v, *source, s);
    };
    expect_ok(update(true));
    expect_ok(cuda::check(nullptr));
    expect_ok(update(false));
    const std::string what = std::string(kv_cache_dtype_name(c.cache_dtype)) + " from " +
                             std::string(dtype_name(c.dtype)) + " format " +
                             std::to_string(static_cast<int>(c.format)) + " head size " + std::to_string(c.head_size) +
                             (c.rotates ? " rotated" : "");
    EXPECT_EQ(cache.fetch(), cache.host) << what;
    EXPECT_EQ(key.fetch(), key.host) << what;
    EXPECT_EQ(query.fetch(), query.host) << what;
  }
};

TEST_F(GpuCache, StoresWhatTheCpuStores) {
  for (const KVCacheFormat format :
       {KVCacheFormat::kBlockFirst, KVCacheFormat::kKVFirst, KVCacheFormat::kPackedKV, KVCacheFormat::kDifferential}) {
    for (const KVCacheDType cache_dtype : all_kv_cache_dtypes()) {
      for (const DType dtype : {DType::kBFloat16, DType::kFloat16, DType::kFloat32}) {
        for (const bool rotates : {false, true}) {
          run({.format = format, .cache_dtype = cache_dtype, .dtype = dtype, .rotates = rotates});
        }
        run({.format = format,
             .cache_dtype = cache_dtype,
             .dtype = dtype,
             .head_size = 72,
             .head_size_v = 72,
             .rotates = true,
             .style = RopeStyle::kGptj});
      }
    }
  }
}

// NaNs keep their sign, infinities and large numbers saturate. What would make NaNs, whose sign differs between
// processors, is left out: rotation, and infinities times the inverse of an infinite row scale.
TEST_F(GpuCache, StoresSpecialNumbers) {
  for (const KVCacheDType cache_dtype : all_kv_cache_dtypes()) {
    if (!is_quantized(cache_dtype)) continue;
    for (const DType dtype : {DType::kBFloat16, DType::kFloat16, DType::kFloat32}) {
      for (const double share : {0.002, 0.1}) run({.cache_dtype = cache_dtype, .dtype = dtype, .special_share = share});
    }
  }
}

// Large calls give each team several heads.
TEST_F(GpuCache, StoresManyTokens) {
  for (const KVCacheDType cache_dtype : all_kv_cache_dtypes()) {
    for (const bool rotates : {false, true}) {
      const double share = rotates || !is_quantized(cache_dtype) ? 0.0 : 0.001;
      run({.cache_dtype = cache_dtype, .rotates = rotates, .tokens = 2049, .special_share = share});
    }
    run({.format = KVCacheFormat::kDifferential, .cache_dtype = cache_dtype, .tokens = 2049});
  }
}

TEST_F(GpuCache, StoresHeadMajorPages) {
  for (const KVCacheDType cache_dtype : all_kv_cache_dtypes()) {
    run({.layout = KVCacheLayout::kHND, .cache_dtype = cache_dtype});
    run({.format = KVCacheFormat::kPackedKV,
         .layout = KVCacheLayout::kHND,
         .cache_dtype = cache_dtype,
         .head_size = 192});
  }
}

TEST_F(GpuCache, RotatesInEveryStyleAndPart) {
  for (const RopeStyle style : {RopeStyle::kNeox, RopeStyle::kGptj}) {
    for (const std::int32_t rotary_dim : {16, 20, 32, 64}) {
      for (const DType angle_dtype : {DType::kFloat32, DType::kBFloat16}) {
        for (const KVCacheDType cache_dtype :
             {KVCacheDType::kAuto, KVCacheDType::kFp8E4M3, KVCacheDType::kFp8E5M2, KVCacheDType::kInt8PerTokenHead}) {
          run({.cache_dtype = cache_dtype,
               .head_size = 96,
               .head_size_v = 96,
               .rotates = true,
               .style = style,
               .rotary_dim = rotary_dim,
               .angle_dtype = angle_dtype});
        }
      }
    }
  }
}

// Both ways between the device and the host, and inside the device, against swap_blocks and copy_blocks of the host.
TEST_F(GpuCache, MovesBlocksAsTheHostDoes) {
  for (const KVCacheLayout layout : {KVCacheLayout::kNHD, KVCacheLayout::kHND}) {
    for (const KVCacheDType cache_dtype : {KVCacheDType::kAuto, KVCacheDType::kInt8PerTokenHead}) {
      KVCacheSpec spec{.layout = layout,
                       .cache_dtype = cache_dtype,
                       .model_dtype = DType::kBFloat16,
                       .num_blocks = 6,
                       .block_size = 16,
                       .num_kv_heads = 3,
                       .head_size = 64};
      const auto bytes = static_cast<std::size_t>(*kv_cache_bytes(spec));
      Mirror first(bytes), second(bytes);
      Random random(3);
      for (Mirror* mirror : {&first, &second}) {
        for (std::byte& byte : mirror->host) byte = static_cast<std::byte>(random.between(0, 255));
        mirror->send();
      }
      const auto bind = [&](void* data, Device device) {
        return *bind_kv_cache(spec, *view_kv_cache(spec, data, device), {});
      };
      const std::vector<BlockPair> pairs = {{0, 5}, {4, 1}, {2, 2}};
      // The device's first into the host's second; then the host's second into the device's first.
      std::vector<std::byte> want = second.host;
      expect_ok(quire::swap_blocks(bind(first.host.data(), {}), bind(want.data(), {}), pairs));
      std::vector<std::byte> got = second.host;
      expect_ok(cuda::swap_blocks(bind(first.device.data(), kDevice), bind(got.data(), {}), pairs, nullptr));
      expect_ok(cuda::synchronize(nullptr));
      EXPECT_EQ(got, want);
      const std::vector<BlockPair> back = {{5, 3}, {1, 0}};
      expect_ok(cuda::swap_blocks(bind(got.data(), {}), bind(first.device.data(), kDevice), back, nullptr));
      expect_ok(quire::swap_blocks(bind(want.data(), {}), bind(first.host.data(), {}), back));
      EXPECT_EQ(first.fetch(), first.host);
      const std::vector<BlockPair> chain = {{0, 1}, {1, 2}, {3, 4}};
      const std::vector<KVSource> on_device = {bind(first.device.data(), kDevice)};
      const std::vector<KVSource> on_host = {bind(first.host.data(), {})};
      expect_ok(cuda::copy_blocks(on_device, chain, nullptr));
      expect_ok(quire::copy_blocks(on_host, chain));
      EXPECT_EQ(first.fetch(), first.host);
    }
  }
}

TEST_F(GpuCache, ReportsABadSlotAndStoresNothingForIt) {
  const KVCacheSpec spec{
      .model_dtype = DType::kBFloat16, .num_blocks = 4, .block_size = 16, .num_kv_heads = 2, .head_size = 64};
  Mirror cache(static_cast<std::size_t>(*kv_cache_bytes(spec))), rows(2 * 2 * 64 * 2), slots(16);
  std::memset(rows.host.data(), 0x3f, rows.host.size());
  const std::int64_t bad[2] = {1, 64};
  std::memcpy(slots.host.data(), bad, sizeof(bad));
  for (Mirror* mirror : {&cache, &rows, &slots}) mirror->send();
  const Result<TensorView> cache_view = view_kv_cache(spec, cache.device.data(), kDevice);
  const Result<KVSource> source = bind_kv_cache(spec, *cache_view, {});
  const TensorView tensor = view(rows.device.data(), DType::kBFloat16, {2, 2, 64}, kDevice);
  expect_ok(cuda::reshape_and_cache_flash(tensor, tensor, *source,
                                          view(slots.device.data(), DType::kInt64, {2}, kDevice), nullptr));
  const Status fault = cuda::check(nullptr);
  EXPECT_EQ(fault.code(), StatusCode::kOutOfRange);
  EXPECT_NE(fault.message().find("slot_mapping[1]: want a slot below 64, got 64"), std::string::npos)
      << fault.message();
  std::size_t written = 0;
  for (const std::byte byte : cache.fetch()) written += byte != std::byte{0} ? 1 : 0;
  EXPECT_EQ(written, 2u * 2 * 64 * 2);
  EXPECT_TRUE(cuda::check(nullptr).ok());
}

}  // namespace
}  // namespace quire::testing
