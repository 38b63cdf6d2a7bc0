// Tests that wrong arguments of the cache operations are refused with a message and leave every byte as it was.
#include <gtest/gtest.h>

#include <cmath>

#include "unit/kv/cache_model.h"

namespace quire {
namespace {

using kv_test::CacheCase;
using kv_test::CacheModel;
using kv_test::GuardedBuffer;
using kv_test::Rows;

CacheCase small_cache(KVCacheDType dtype) {
  return {.spec = {.cache_dtype = dtype, .num_blocks = 4, .block_size = 16, .num_kv_heads = 2, .head_size = 8}};
}

struct StoreCall {
  TensorView key;
  TensorView value;
  KVSource cache;
  TensorView slots;
};

// Runs the call after `change`; the message of its error.
template <class Change>
std::string error_of(StoreCall call, Change change) {
  change(call);
  return reshape_and_cache_flash(call.key, call.value, call.cache, call.slots).message();
}

#define QUIRE_EXPECT_HAS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)

TEST(StoreBadInput, NamesTheArgumentAndWritesNothing) {
  CacheModel model(small_cache(KVCacheDType::kAuto));
  Rows key(DType::kBFloat16, 3, 2, 8), value(DType::kBFloat16, 3, 2, 8);
  std::vector<std::int64_t> slots{0, 63, 5};
  const auto before = model.cache().bytes();
  const StoreCall call{key.view(), value.view(), *model.bind(), *make_tensor(slots.data(), DType::kInt64, {3})};
  const auto error = [&](auto change) { return error_of(call, change); };
  QUIRE_EXPECT_HAS(error([](StoreCall& c) { c.key.data = nullptr; }), "key: want data, got a null pointer");
  QUIRE_EXPECT_HAS(error([](StoreCall& c) { c.key.data = c.key.as<char>() + 1; }), "key.data: want an address aligned");
  QUIRE_EXPECT_HAS(error([](StoreCall& c) { c.key.dtype = DType::kInt8; }),
                   "key.dtype: want float32, float16 or bfloat16, got int8");
  QUIRE_EXPECT_HAS(error([](StoreCall& c) { c.value.dtype = DType::kFloat16; }),
                   "value.dtype: want key's, bfloat16, got float16");
  QUIRE_EXPECT_HAS(error([](StoreCall& c) { c.key.shape[1] = 3; }), "key.shape: want [*, 2, 8], got [3, 3, 8]");
  QUIRE_EXPECT_HAS(error([](StoreCall& c) { c.value.shape[2] = 7; }), "value.shape: want [*, 2, 8], got [3, 2, 7]");
  QUIRE_EXPECT_HAS(error([](StoreCall& c) { c.key.strides[2] = 2; }), "key.strides: want 1 in the last dimension");
  QUIRE_EXPECT_HAS(error([](StoreCall& c) { c.key.strides[0] = -8; }), "key.strides: want strides >= 0");
  QUIRE_EXPECT_HAS(error([](StoreCall& c) { c.key.shape[0] = 2; }),
                   "key.shape: want at least 3 rows, one for each slot, got 2");
  QUIRE_EXPECT_HAS(error([](StoreCall& c) { c.value.shape[0] = 1; }), "value.shape: want at least 3 rows");
  QUIRE_EXPECT_HAS(error([](StoreCall& c) { c.slots.dtype = DType::kInt32; }),
                   "slot_mapping.dtype: want int64, got int32");
  QUIRE_EXPECT_HAS(error([](StoreCall& c) { c.slots.rank = 2; }), "slot_mapping.shape");
  QUIRE_EXPECT_HAS(error([](StoreCall& c) {
                     c.key.device = {DeviceType::kCuda, 0};
                   }),
                   "key.device: want the cache's, cpu, got cuda:0");
  QUIRE_EXPECT_HAS(error([](StoreCall& c) { c.cache.key[0].data = nullptr; }), "cache.key[0].data: want data");
  QUIRE_EXPECT_HAS(error([](StoreCall& c) { c.cache.num_blocks = 0; }), "cache.num_blocks: want > 0, got 0");
  QUIRE_EXPECT_HAS(error([](StoreCall& c) { c.cache.num_blocks = INT64_MAX; }), "2^63 slots");
  QUIRE_EXPECT_HAS(error([](StoreCall& c) { c.cache.num_streams = 3; }), "cache.num_streams: want 1 or 2, got 3");
  QUIRE_EXPECT_HAS(error([](StoreCall& c) { c.cache.dtype = DType::kInt8; }), "cache.dtype");
  QUIRE_EXPECT_HAS(error([&](StoreCall&) { slots[1] = 64; }),
                   "slot_mapping[1]: want a slot below 64 (4 blocks of 16 tokens) or a negative one, got 64");
  slots[1] = INT64_MIN;
  slots[2] = INT64_MAX;
  QUIRE_EXPECT_HAS(error([](StoreCall&) {}), "slot_mapping[2]");
  EXPECT_EQ(model.cache().bytes(), before);
  EXPECT_TRUE(model.guards_intact());
}

TEST(StoreBadInput, OtherDevicesAreUnsupported) {
  CacheModel model(small_cache(KVCacheDType::kAuto));
  Rows key(DType::kBFloat16, 1, 2, 8);
  std::vector<std::int64_t> slots{0};
  const Device cuda{DeviceType::kCuda, 2};
  StoreCall call{key.view(), key.view(), *model.bind(), *make_tensor(slots.data(), DType::kInt64, {1})};
  call.key.device = call.value.device = call.cache.device = call.slots.device = cuda;
  const Status status = reshape_and_cache_flash(call.key, call.value, call.cache, call.slots);
  EXPECT_EQ(status.code(), StatusCode::kUnsupported);
  QUIRE_EXPECT_HAS(status.message(), "got cuda:2");
}

struct BindCall {
  KVCacheSpec spec;
  TensorView cache;
  KVScales scales;
};

TEST(BindBadInput, NamesTheArgument) {
  GuardedBuffer memory(1 << 16);
  const KVCacheSpec spec = small_cache(KVCacheDType::kInt8PerTokenHead).spec;
  const BindCall call{spec, *view_kv_cache(spec, memory.data()), {}};
  const auto error = [&](auto change) {
    BindCall changed = call;
    change(changed);
    return bind_kv_cache(changed.spec, changed.cache, changed.scales).status().message();
  };
  EXPECT_EQ(error([](BindCall&) {}), "");
  EXPECT_EQ(error([](BindCall& c) { c.cache.dtype = DType::kUInt8; }), "");
  QUIRE_EXPECT_HAS(error([](BindCall& c) { c.cache.dtype = DType::kFloat8E4M3; }), "kv_cache.dtype: want int8");
  QUIRE_EXPECT_HAS(error([](BindCall& c) { c.cache.shape[4] = 8; }),
                   "kv_cache.shape: want [4, 2, 16, 2, 12], got [4, 2, 16, 2, 8]");
  QUIRE_EXPECT_HAS(error([](BindCall& c) { c.cache.rank = 4; }), "kv_cache.shape");
  QUIRE_EXPECT_HAS(error([](BindCall& c) { c.cache = {}; }), "kv_cache.shape: want [4, 2, 16, 2, 12], got none");
  QUIRE_EXPECT_HAS(error([](BindCall& c) { c.cache.data = nullptr; }), "kv_cache: want data");
  QUIRE_EXPECT_HAS(error([](BindCall& c) { c.cache.data = c.cache.as<char>() + 2; }),
                   "aligned to 4 bytes for inline scales");
  QUIRE_EXPECT_HAS(error([](BindCall& c) { c.cache.strides[3] = 13; }), "kv_cache.strides");
  QUIRE_EXPECT_HAS(error([](BindCall& c) { c.cache.strides[0] = 4; }), "overlap");
  QUIRE_EXPECT_HAS(error([](BindCall& c) { c.spec.num_blocks = 5; }), "kv_cache.shape: want [5, 2");
  QUIRE_EXPECT_HAS(error([](BindCall& c) { c.scales.k_scale_cache = c.cache; }), "scales.k_scale_cache: want none");
  const auto separate = [](BindCall& c) {
    c.spec.scales = ScalePlacement::kSeparate;
    c.cache = *view_kv_cache(c.spec, c.cache.data);
  };
  QUIRE_EXPECT_HAS(error(separate), "scales.k_scale_cache.shape: want [4, 16, 2]");
  QUIRE_EXPECT_HAS(
      error([&](BindCall& c) {
        separate(c);
        c.scales.k_scale_cache = *make_tensor(memory.data(), DType::kFloat32, {4, 16, 2});
        c.scales.v_scale_cache = *make_tensor(memory.data(), DType::kFloat32, {4, 16, 2}, {DeviceType::kCuda});
      }),
      "scales.v_scale_cache.device");
  const auto per_tensor = [](BindCall& c) {
    c.spec.cache_dtype = KVCacheDType::kFp8E4M3;
    c.cache = *view_kv_cache(c.spec, c.cache.data);
  };
  EXPECT_EQ(error(per_tensor), "");
  for (float scale : {0.0f, -1.0f, INFINITY, NAN}) {
    QUIRE_EXPECT_HAS(error([&](BindCall& c) {
                       per_tensor(c);
                       c.scales.v_scale = scale;
                     }),
                     "scales.v_scale: want a finite number > 0");
  }
}

}  // namespace
}  // namespace quire
