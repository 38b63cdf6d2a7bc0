// Tests of cache names, shapes, stride orders and views against the tables of the specification.
#include <gtest/gtest.h>

#include <cstdlib>
#include <numeric>
#include <string>
#include <vector>

#include "quire/kv_cache.h"

namespace quire {
namespace {

using Sizes = std::vector<std::int64_t>;
using Order = std::vector<int>;

KVCacheSpec spec_of(KVCacheFormat format, KVCacheDType dtype = KVCacheDType::kAuto) {
  return {.format = format,
          .cache_dtype = dtype,
          .num_blocks = 7,
          .block_size = 16,
          .num_kv_heads = 4,
          .head_size = 24,
          .head_size_v = format == KVCacheFormat::kPackedKV ? 12 : 0};
}

TEST(KVCacheNames, RoundTrip) {
  for (KVCacheDType dtype : all_kv_cache_dtypes()) {
    const auto parsed = parse_kv_cache_dtype(kv_cache_dtype_name(dtype));
    ASSERT_TRUE(parsed.ok());
    EXPECT_EQ(*parsed, dtype);
  }
  EXPECT_EQ(*parse_kv_cache_dtype("fp8"), KVCacheDType::kFp8E4M3);
  const auto wrong = parse_kv_cache_dtype("int3");
  ASSERT_FALSE(wrong.ok());
  EXPECT_NE(wrong.status().message().find("'int3'"), std::string::npos) << wrong.status().message();
  EXPECT_NE(wrong.status().message().find("fp8_per_token_head"), std::string::npos) << wrong.status().message();
}

TEST(KVCacheNames, LayoutsAndTheEnvironment) {
  EXPECT_EQ(*parse_kv_cache_layout("NHD"), KVCacheLayout::kNHD);
  EXPECT_EQ(*parse_kv_cache_layout("HND"), KVCacheLayout::kHND);
  EXPECT_FALSE(parse_kv_cache_layout("nhd").ok());
  unsetenv("QUIRE_KV_CACHE_LAYOUT");
  unsetenv("VLLM_KV_CACHE_LAYOUT");
  EXPECT_EQ(*default_kv_cache_layout(), KVCacheLayout::kNHD);
  EXPECT_EQ(*default_kv_cache_layout(KVCacheLayout::kHND), KVCacheLayout::kHND);
  setenv("VLLM_KV_CACHE_LAYOUT", "HND", 1);
  EXPECT_EQ(*default_kv_cache_layout(), KVCacheLayout::kHND);
  setenv("QUIRE_KV_CACHE_LAYOUT", "NHD", 1);
  EXPECT_EQ(*default_kv_cache_layout(KVCacheLayout::kHND), KVCacheLayout::kNHD);
  setenv("QUIRE_KV_CACHE_LAYOUT", "DHN", 1);
  EXPECT_NE(default_kv_cache_layout().status().message().find("QUIRE_KV_CACHE_LAYOUT"), std::string::npos);
  unsetenv("QUIRE_KV_CACHE_LAYOUT");
  unsetenv("VLLM_KV_CACHE_LAYOUT");
}

TEST(KVCacheShape, LogicalShapes) {
  EXPECT_EQ(*kv_cache_shape(spec_of(KVCacheFormat::kKVFirst)), (Sizes{2, 7, 16, 4, 24}));
  EXPECT_EQ(*kv_cache_shape(spec_of(KVCacheFormat::kBlockFirst)), (Sizes{7, 2, 16, 4, 24}));
  EXPECT_EQ(*kv_cache_shape(spec_of(KVCacheFormat::kPackedKV)), (Sizes{7, 16, 4, 36}));
  EXPECT_EQ(*kv_cache_shape(spec_of(KVCacheFormat::kDifferential)), (Sizes{2, 2, 7, 16, 2, 24}));
  constexpr auto kInt8 = KVCacheDType::kInt8PerTokenHead;
  EXPECT_EQ(*kv_cache_shape(spec_of(KVCacheFormat::kBlockFirst, kInt8)), (Sizes{7, 2, 16, 4, 28}));
  EXPECT_EQ(*kv_cache_shape(spec_of(KVCacheFormat::kPackedKV, kInt8)), (Sizes{7, 16, 4, 44}));
  EXPECT_EQ(*kv_cache_shape(spec_of(KVCacheFormat::kDifferential, kInt8)), (Sizes{2, 2, 7, 16, 2, 28}));
  KVCacheSpec separate = spec_of(KVCacheFormat::kBlockFirst, kInt8);
  separate.scales = ScalePlacement::kSeparate;
  EXPECT_EQ(*kv_cache_shape(separate), (Sizes{7, 2, 16, 4, 24}));
}

TEST(KVCacheShape, Bytes) {
  EXPECT_EQ(*kv_block_bytes(spec_of(KVCacheFormat::kBlockFirst)), 2 * 16 * 4 * 24 * 2);
  EXPECT_EQ(*kv_cache_bytes(spec_of(KVCacheFormat::kBlockFirst)), 7 * 2 * 16 * 4 * 24 * 2);
  // 2 * bs * H * D elements of one byte and 2 * bs * H scales of four.
  EXPECT_EQ(*kv_block_bytes(spec_of(KVCacheFormat::kBlockFirst, KVCacheDType::kFp8PerTokenHead)),
            2 * 16 * 4 * 24 + 2 * 16 * 4 * 4);
  EXPECT_EQ(*kv_block_bytes(spec_of(KVCacheFormat::kPackedKV, KVCacheDType::kFp8E5M2)), 16 * 4 * 36);
}

TEST(KVCacheShape, WrongSpecsNameTheField) {
  const auto message = [](auto change) {
    KVCacheSpec spec = spec_of(KVCacheFormat::kBlockFirst, KVCacheDType::kInt8PerTokenHead);
    change(spec);
    return kv_cache_shape(spec).status().message();
  };
  EXPECT_EQ(message([](KVCacheSpec&) {}), "");
  EXPECT_EQ(message([](KVCacheSpec& s) { s.num_blocks = 0; }), "spec.num_blocks: want > 0, got 0");
  EXPECT_EQ(message([](KVCacheSpec& s) { s.block_size = -3; }), "spec.block_size: want > 0, got -3");
  EXPECT_EQ(message([](KVCacheSpec& s) { s.num_kv_heads = 0; }), "spec.num_kv_heads: want > 0, got 0");
  EXPECT_EQ(message([](KVCacheSpec& s) { s.head_size = 0; }), "spec.head_size: want > 0, got 0");
  EXPECT_EQ(message([](KVCacheSpec& s) { s.head_size = 22; }),
            "spec.head_size: want a multiple of 4 for inline scales, got 22");
  EXPECT_NE(message([](KVCacheSpec& s) { s.head_size_v = 12; }).find("spec.head_size_v"), std::string::npos);
  EXPECT_NE(message([](KVCacheSpec& s) { s.model_dtype = DType::kInt8; }).find("got int8"), std::string::npos);
  EXPECT_NE(message([](KVCacheSpec& s) { s.num_blocks = std::int64_t{1} << 60; }).find("2^60"), std::string::npos);
  EXPECT_NE(message([](KVCacheSpec& s) {
              s.format = KVCacheFormat::kDifferential;
              s.num_kv_heads = 3;
            }).find("even"),
            std::string::npos);
  EXPECT_NE(message([](KVCacheSpec& s) {
              s.format = KVCacheFormat::kPackedKV;
              s.head_size_v = 10;
            }).find("spec.head_size_v: want a multiple of 4"),
            std::string::npos);
}

TEST(KVCacheStrideOrder, MatchesTheTable) {
  const auto order = [](KVCacheFormat format, KVCacheLayout layout, bool layers) {
    return *kv_cache_stride_order(format, layout, layers);
  };
  constexpr auto kNHD = KVCacheLayout::kNHD;
  constexpr auto kHND = KVCacheLayout::kHND;
  EXPECT_EQ(order(KVCacheFormat::kBlockFirst, kNHD, false), (Order{0, 1, 2, 3, 4}));
  EXPECT_EQ(order(KVCacheFormat::kBlockFirst, kNHD, true), (Order{1, 0, 2, 3, 4, 5}));
  EXPECT_EQ(order(KVCacheFormat::kBlockFirst, kHND, false), (Order{0, 1, 3, 2, 4}));
  EXPECT_EQ(order(KVCacheFormat::kBlockFirst, kHND, true), (Order{1, 2, 4, 0, 3, 5}));
  EXPECT_EQ(order(KVCacheFormat::kPackedKV, kNHD, false), (Order{0, 1, 2, 3}));
  EXPECT_EQ(order(KVCacheFormat::kPackedKV, kNHD, true), (Order{1, 0, 2, 3, 4}));
  EXPECT_EQ(order(KVCacheFormat::kPackedKV, kHND, false), (Order{0, 2, 1, 3}));
  EXPECT_EQ(order(KVCacheFormat::kPackedKV, kHND, true), (Order{1, 3, 0, 2, 4}));
  EXPECT_EQ(order(KVCacheFormat::kKVFirst, kNHD, false), (Order{0, 1, 2, 3, 4}));
  EXPECT_EQ(order(KVCacheFormat::kKVFirst, kNHD, true), (Order{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(order(KVCacheFormat::kDifferential, kNHD, false), (Order{0, 1, 2, 3, 4, 5}));
  for (KVCacheFormat format : {KVCacheFormat::kKVFirst, KVCacheFormat::kDifferential}) {
    EXPECT_EQ(kv_cache_stride_order(format, kHND, false).status().code(), StatusCode::kUnsupported);
  }
}

TEST(KVCacheView, StridesOfEachLayout) {
  alignas(4) std::byte memory[4];
  KVCacheSpec spec = spec_of(KVCacheFormat::kBlockFirst);
  const auto strides = [](const TensorView& view) {
    return Sizes(view.strides.begin(), view.strides.begin() + view.rank);
  };
  EXPECT_EQ(strides(*view_kv_cache(spec, memory)), (Sizes{3072, 1536, 96, 24, 1}));
  spec.layout = KVCacheLayout::kHND;
  EXPECT_EQ(strides(*view_kv_cache(spec, memory)), (Sizes{3072, 1536, 24, 384, 1}));
  spec = spec_of(KVCacheFormat::kPackedKV);
  spec.layout = KVCacheLayout::kHND;
  EXPECT_EQ(strides(*view_kv_cache(spec, memory)), (Sizes{16 * 4 * 36, 36, 16 * 36, 1}));
  spec = spec_of(KVCacheFormat::kKVFirst);
  EXPECT_EQ(strides(*view_kv_cache(spec, memory)), (Sizes{7 * 1536, 1536, 96, 24, 1}));
  spec.layout = KVCacheLayout::kHND;
  EXPECT_EQ(view_kv_cache(spec, memory).status().code(), StatusCode::kUnsupported);
}

TEST(KVCacheView, LayersInOneBuffer) {
  alignas(4) std::byte memory[4];
  KVCacheSpec spec = spec_of(KVCacheFormat::kBlockFirst);
  TensorView view = *view_layered_kv_cache(spec, {.data = memory, .num_layers = 3, .layer = 2});
  EXPECT_EQ(view.rank, 5);
  EXPECT_EQ(view.stride(0), 3 * 3072);  // blocks, layers, 2, ...
  EXPECT_EQ(view.stride(1), 1536);
  EXPECT_EQ(static_cast<std::byte*>(view.data) - memory, 2 * 3072 * 2);
  spec.layout = KVCacheLayout::kHND;
  view = *view_layered_kv_cache(spec, {.data = memory, .num_layers = 3, .layer = 1});
  EXPECT_EQ(static_cast<std::byte*>(view.data) - memory, 16 * 24 * 2);
  EXPECT_EQ(view.stride(0), 3 * 3072);  // blocks, 2, heads, layers, tokens
  EXPECT_EQ(view.stride(1), 3 * 1536);
  EXPECT_EQ(view.stride(2), 24);
  EXPECT_EQ(view.stride(3), 3 * 16 * 24);
  EXPECT_EQ(view_layered_kv_cache(spec, {.data = memory, .num_layers = 3, .layer = 3}).status().code(),
            StatusCode::kOutOfRange);
}

TEST(KVCacheView, WrongMemory) {
  alignas(4) std::byte memory[8];
  const KVCacheSpec spec = spec_of(KVCacheFormat::kBlockFirst);
  EXPECT_NE(view_kv_cache(spec, nullptr).status().message().find("null"), std::string::npos);
  EXPECT_NE(view_kv_cache(spec, memory + 1).status().message().find("off by 1"), std::string::npos);
}

}  // namespace
}  // namespace quire
