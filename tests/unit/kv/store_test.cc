// Tests of reshape_and_cache_flash and bind_kv_cache: every format, layout and codec against a naive store.
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <limits>

#include "unit/kv/cache_model.h"

namespace quire {
namespace {

using kv_test::all_cases;
using kv_test::CacheCase;
using kv_test::CacheModel;
using kv_test::GuardedBuffer;
using kv_test::Place;
using kv_test::Rows;

constexpr float kKScale = 0.75f;
constexpr float kVScale = 1.7f;

TensorView slots_view(std::vector<std::int64_t>& slots) {
  return *make_tensor(slots.data(), DType::kInt64, {static_cast<std::int64_t>(slots.size())});
}

// Bytes that one vector must become, and its row scale, computed without the codecs.
struct Encoded {
  std::vector<unsigned char> bytes;
  float scale = 1.0f;
};

Encoded encode(const CacheModel& model, const std::vector<float>& values, float tensor_scale) {
  const KVCacheSpec& spec = model.spec();
  const DType dtype = kv_storage_dtype(spec.cache_dtype, spec.model_dtype);
  Encoded out{std::vector<unsigned char>(values.size() * static_cast<std::size_t>(dtype_bytes(dtype)))};
  float largest = 0.0f;
  for (float value : values) largest = std::fmax(largest, std::fabs(value));
  if (model.row_scaled()) out.scale = std::fmax(largest * (1.0f / (dtype == DType::kInt8 ? 127.0f : 448.0f)), 1e-6f);
  for (std::size_t i = 0; i < values.size(); ++i) {
    float value = values[i];
    if (model.row_scaled()) {
      value *= 1.0f / out.scale;
    } else if (is_quantized(spec.cache_dtype)) {
      value /= tensor_scale;
    }
    if (dtype == DType::kInt8) {
      out.bytes[i] = static_cast<unsigned char>(
          static_cast<signed char>(std::nearbyint(std::fmin(std::fmax(value, -128.0f), 127.0f))));
    } else {
      store_from_float(out.bytes.data(), dtype, static_cast<std::int64_t>(i), value);
    }
  }
  return out;
}

// What the buffers must hold after the store.
struct Expected {
  std::vector<unsigned char> cache;
  std::vector<unsigned char> scales[2];
};

void expect_vector(CacheModel& model, const Place& place, const std::vector<float>& values, Expected& expected) {
  const Encoded code = encode(model, values, place.kv == 0 ? kKScale : kVScale);
  const auto offset = static_cast<std::size_t>(model.vector_offset(place));
  std::copy(code.bytes.begin(), code.bytes.end(), expected.cache.begin() + static_cast<std::ptrdiff_t>(offset));
  if (model.inline_scales()) kv_test::store_float(expected.cache.data() + offset + code.bytes.size(), code.scale);
  if (model.separate_scales()) {
    kv_test::store_float(expected.scales[place.kv].data() + model.scale_index(place) * 4, code.scale);
  }
}

Expected expect_store(CacheModel& model, Rows& key, Rows& value, const std::vector<std::int64_t>& slots) {
  Expected expected{model.cache().bytes(), {model.scales(0).bytes(), model.scales(1).bytes()}};
  const KVCacheSpec& spec = model.spec();
  for (std::size_t token = 0; token < slots.size(); ++token) {
    if (slots[token] < 0) continue;
    for (std::int64_t head = 0; head < spec.num_kv_heads; ++head) {
      for (int kv = 0; kv < 2; ++kv) {
        std::vector<float> values;
        for (std::int64_t d = 0; d < model.size_of(kv); ++d) {
          values.push_back((kv == 0 ? key : value).get(static_cast<std::int64_t>(token), head, d));
        }
        expect_vector(model, {kv, head, slots[token] / spec.block_size, slots[token] % spec.block_size}, values,
                      expected);
      }
    }
  }
  return expected;
}

void expect_same(CacheModel& model, const Expected& expected) {
  EXPECT_EQ(model.cache().bytes(), expected.cache);
  EXPECT_EQ(model.scales(0).bytes(), expected.scales[0]);
  EXPECT_EQ(model.scales(1).bytes(), expected.scales[1]);
  EXPECT_TRUE(model.guards_intact());
}

class StoreTest : public testing::TestWithParam<DType> {};

TEST_P(StoreTest, EveryFormatLayoutAndCodec) {
  std::mt19937 random(1);
  for (const CacheCase& test : all_cases(GetParam())) {
    SCOPED_TRACE(test.name());
    CacheModel model(test);
    const Result<KVSource> cache = model.bind(kKScale, kVScale);
    ASSERT_TRUE(cache.ok()) << cache.status().to_string();
    // Two more rows than slots, unused slots, a slot in the last place, one named twice.
    std::vector<std::int64_t> slots{4, -1, 14, 0, 7, -1, 7, 9};
    Rows key(GetParam(), 10, 4, model.size_of(0));
    Rows value(GetParam(), 10, 4, model.size_of(1));
    key.fill(random);
    value.fill(random);
    for (std::int64_t d = 0; d < model.size_of(0); ++d) key.set(2, 1, d, 0.0f);
    key.set(3, 0, 5, 60000.0f);
    value.set(3, 2, 5, -60000.0f);
    const Expected expected = expect_store(model, key, value, slots);
    const Status status = reshape_and_cache_flash(key.view(), value.view(), *cache, slots_view(slots));
    ASSERT_TRUE(status.ok()) << status.to_string();
    expect_same(model, expected);
    EXPECT_TRUE(key.buffer().guards_intact());
  }
}

INSTANTIATE_TEST_SUITE_P(ModelDTypes, StoreTest, testing::Values(DType::kFloat32, DType::kFloat16, DType::kBFloat16),
                         [](const auto& test) { return std::string(dtype_name(test.param)); });

CacheCase small_case(KVCacheDType dtype) {
  return {{.cache_dtype = dtype, .num_blocks = 4, .block_size = 16, .num_kv_heads = 2, .head_size = 8}};
}

TEST(Store, RowsThatAreFp8AlreadyKeepTheirBits) {
  CacheModel model(small_case(KVCacheDType::kFp8E4M3));
  Rows key(DType::kFloat8E4M3, 1, 2, 8);
  Rows value(DType::kFloat8E4M3, 1, 2, 8);
  std::mt19937 random(2);
  key.fill(random);
  value.fill(random);
  std::vector<std::int64_t> slots{5};
  ASSERT_TRUE(reshape_and_cache_flash(key.view(), value.view(), *model.bind(3.0f, 5.0f), slots_view(slots)).ok());
  for (std::int64_t head = 0; head < 2; ++head) {
    const std::int64_t offset = model.vector_offset({0, head, 0, 5});
    EXPECT_EQ(std::memcmp(model.cache().data() + offset, key.view().as<unsigned char>() + key.index(0, head, 0), 8), 0);
  }
  CacheModel other(small_case(KVCacheDType::kFp8PerTokenHead));
  EXPECT_FALSE(reshape_and_cache_flash(key.view(), value.view(), *other.bind(), slots_view(slots)).ok());
}

TEST(Store, NotANumberStaysInItsElement) {
  CacheModel model(small_case(KVCacheDType::kInt8PerTokenHead));
  Rows key(DType::kFloat32, 1, 2, 8);
  Rows value(DType::kFloat32, 1, 2, 8);
  for (std::int64_t d = 0; d < 8; ++d) {
    for (std::int64_t head = 0; head < 2; ++head) {
      key.set(0, head, d, 127.0f);
      value.set(0, head, d, 127.0f);
    }
  }
  key.set(0, 0, 3, std::numeric_limits<float>::quiet_NaN());
  std::vector<std::int64_t> slots{0};
  ASSERT_TRUE(reshape_and_cache_flash(key.view(), value.view(), *model.bind(), slots_view(slots)).ok());
  const unsigned char* row = model.cache().data() + model.vector_offset({0, 0, 0, 0});
  for (int d = 0; d < 8; ++d) EXPECT_EQ(row[d], d == 3 ? 0 : 127) << d;
  float scale = 0.0f;
  std::memcpy(&scale, row + 8, 4);
  EXPECT_EQ(scale, 1.0f);
}

// Enough tokens for several threads, with slots that repeat: the later token wins.
TEST(Store, AnyNumberOfThreadsStoresTheSame) {
  CacheCase test = small_case(KVCacheDType::kInt8PerTokenHead);
  test.spec.num_blocks = 40;
  test.spec.head_size = 64;
  constexpr std::int64_t kTokens = 700;
  Rows key(DType::kBFloat16, kTokens, 2, 64);
  Rows value(DType::kBFloat16, kTokens, 2, 64);
  std::mt19937 random(3);
  key.fill(random);
  value.fill(random);
  std::vector<std::int64_t> slots;
  for (std::int64_t i = 0; i < kTokens; ++i) slots.push_back(static_cast<std::int64_t>(random() % 641) - 1);
  CacheModel reference(test);
  const Expected expected = expect_store(reference, key, value, slots);
  for (int threads : {1, 2, 3, 8}) {
    CacheModel model(test);
    omp_set_num_threads(threads);
    ASSERT_TRUE(reshape_and_cache_flash(key.view(), value.view(), *model.bind(), slots_view(slots)).ok());
    expect_same(model, expected);
  }
  omp_set_num_threads(omp_get_num_procs());
}

TEST(Store, NoSlotsStoreNothing) {
  CacheModel model(small_case(KVCacheDType::kAuto));
  Rows key(DType::kBFloat16, 1, 2, 8);
  TensorView none{.dtype = DType::kInt64, .rank = 1};
  const auto before = model.cache().bytes();
  EXPECT_TRUE(reshape_and_cache_flash(key.view(), key.view(), *model.bind(), none).ok());
  EXPECT_EQ(model.cache().bytes(), before);
}

TEST(ResetScales, SetsEveryScaleAndNothingElse) {
  for (const CacheCase& test : all_cases(DType::kBFloat16)) {
    SCOPED_TRACE(test.name());
    CacheModel model(test);
    Expected expected{model.cache().bytes(), {model.scales(0).bytes(), model.scales(1).bytes()}};
    for (std::int64_t slot = 0; slot < 15; ++slot) {
      for (std::int64_t head = 0; head < 4; ++head) {
        for (int kv = 0; kv < 2; ++kv) {
          const Place place{kv, head, slot / 3, slot % 3};
          const std::int64_t at = model.vector_offset(place) + model.size_of(kv);
          if (model.inline_scales()) kv_test::store_float(expected.cache.data() + at, 1.0f);
          if (model.separate_scales()) {
            kv_test::store_float(expected.scales[kv].data() + model.scale_index(place) * 4, 1.0f);
          }
        }
      }
    }
    ASSERT_TRUE(reset_kv_scales(*model.bind()).ok());
    expect_same(model, expected);
  }
}

}  // namespace
}  // namespace quire
