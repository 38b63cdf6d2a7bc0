// What the backends say of themselves: shapes, orders, sizes, reasons against a configuration, the capability table.
#include <gtest/gtest.h>

#include <set>

#include "quire/backend.h"

namespace quire::test {
namespace {

const AttentionBackend& backend(std::string_view name) { return **find_backend(name); }

// The five; users' backends come behind them.
std::vector<const AttentionBackend*> builtin_backends() {
  std::vector<const AttentionBackend*> all = registered_backends();
  all.resize(5);
  return all;
}

KVCacheSpec spec(std::int32_t block_size = 16) {
  return {.num_blocks = 1234567, .block_size = block_size, .num_kv_heads = 8, .head_size = 64, .head_size_v = 0};
}

using Shape = std::vector<std::int64_t>;
using Order = std::vector<int>;

TEST(Facts, ShapesOfTheFiveCaches) {
  EXPECT_EQ(*backend("TREE_ATTN").kv_cache_shape(spec()), (Shape{2, 1234567, 16, 8, 64}));
  EXPECT_EQ(*backend("XFORMERS").kv_cache_shape(spec()), (Shape{2, 1234567, 16, 8, 64}));
  EXPECT_EQ(*backend("TRITON_ATTN").kv_cache_shape(spec()), (Shape{1234567, 2, 16, 8, 64}));
  EXPECT_EQ(*backend("DIFFERENTIAL_FLASH_ATTN").kv_cache_shape(spec()), (Shape{2, 2, 1234567, 16, 4, 64}));
  KVCacheSpec packed = spec();
  packed.head_size = 192;
  packed.head_size_v = 128;
  EXPECT_EQ(*backend("TRITON_ATTN_DIFFKV").kv_cache_shape(packed), (Shape{1234567, 16, 8, 320}));
  KVCacheSpec scaled = spec();
  scaled.cache_dtype = KVCacheDType::kInt8PerTokenHead;
  EXPECT_EQ(*backend("TRITON_ATTN").kv_cache_shape(scaled), (Shape{1234567, 2, 16, 8, 68}));
}

TEST(Facts, TheBlockDimensionIsTheOneThatCountsBlocks) {
  for (const AttentionBackend* each : builtin_backends()) {
    const Shape shape = *each->kv_cache_shape(spec());
    EXPECT_EQ(shape[static_cast<std::size_t>(each->kv_cache_block_dim())], 1234567) << each->name();
  }
}

TEST(Facts, BlockSizesAreMultiplesOf16) {
  for (const AttentionBackend* each : builtin_backends()) {
    const auto shape = each->kv_cache_shape(spec(24));
    ASSERT_FALSE(shape.ok()) << each->name();
    EXPECT_NE(shape.status().message().find("Block size must be a multiple of 16"), std::string::npos);
    EXPECT_TRUE(each->supports_block_size(48));
    EXPECT_FALSE(each->supports_block_size(0));
    EXPECT_EQ(each->preferred_block_size(64), 64);
    EXPECT_EQ(each->preferred_block_size(20), 16);
  }
}

TEST(Facts, DifferentialCachesNeedPairsOfHeads) {
  KVCacheSpec odd = spec();
  odd.num_kv_heads = 7;
  EXPECT_FALSE(backend("DIFFERENTIAL_FLASH_ATTN").kv_cache_shape(odd).ok());
}

TEST(Facts, StrideOrders) {
  const AttentionBackend& triton = backend("TRITON_ATTN");
  EXPECT_EQ(*triton.kv_cache_stride_order(KVCacheLayout::kNHD, false), (Order{0, 1, 2, 3, 4}));
  EXPECT_EQ(*triton.kv_cache_stride_order(KVCacheLayout::kNHD, true), (Order{1, 0, 2, 3, 4, 5}));
  EXPECT_EQ(*triton.kv_cache_stride_order(KVCacheLayout::kHND, false), (Order{0, 1, 3, 2, 4}));
  EXPECT_EQ(*triton.kv_cache_stride_order(KVCacheLayout::kHND, true), (Order{1, 2, 4, 0, 3, 5}));
  const AttentionBackend& diffkv = backend("TRITON_ATTN_DIFFKV");
  EXPECT_EQ(*diffkv.kv_cache_stride_order(KVCacheLayout::kNHD, true), (Order{1, 0, 2, 3, 4}));
  EXPECT_EQ(*diffkv.kv_cache_stride_order(KVCacheLayout::kHND, false), (Order{0, 2, 1, 3}));
  EXPECT_EQ(*diffkv.kv_cache_stride_order(KVCacheLayout::kHND, true), (Order{1, 3, 0, 2, 4}));
  EXPECT_TRUE(triton.indexes_kv_by_block_stride(KVCacheLayout::kNHD));
  EXPECT_FALSE(backend("TREE_ATTN").kv_cache_stride_order(KVCacheLayout::kHND, false).ok());
  EXPECT_FALSE(backend("TREE_ATTN").indexes_kv_by_block_stride(KVCacheLayout::kHND));
}

TEST(Facts, CapabilitiesThatDiffer) {
  const auto row = [](std::string_view name) {
    const AttentionBackend& each = backend(name);
    return std::vector<bool>{each.supports_sink(),
                             each.supports_mm_prefix(),
                             each.supports_alibi_sqrt(),
                             each.supports_non_causal(),
                             each.supports_attn_type(AttentionType::kEncoder),
                             each.supports_head_size(192, 128),
                             each.is_automatic()};
  };
  EXPECT_EQ(row("TREE_ATTN"), (std::vector<bool>{true, false, false, false, false, false, true}));
  EXPECT_EQ(row("XFORMERS"), (std::vector<bool>{false, false, false, false, false, false, true}));
  EXPECT_EQ(row("TRITON_ATTN"), (std::vector<bool>{true, true, true, true, true, false, true}));
  EXPECT_EQ(row("TRITON_ATTN_DIFFKV"), (std::vector<bool>{true, true, true, true, false, true, true}));
  EXPECT_EQ(row("DIFFERENTIAL_FLASH_ATTN"), (std::vector<bool>{false, false, false, false, false, false, false}));
  EXPECT_EQ(backend("TRITON_ATTN").cudagraph_support(), CudagraphSupport::kAlways);
  EXPECT_EQ(backend("TREE_ATTN").cudagraph_support(), CudagraphSupport::kNever);
  for (const AttentionBackend* each : builtin_backends()) {
    EXPECT_TRUE(each->supports_head_size(8, 8));
    EXPECT_FALSE(each->supports_head_size(7, 7));
    EXPECT_TRUE(each->supports_head_size(100, 100));
  }
}

AttentionConfig config_for_reference() {
  AttentionConfig config;
  config.backplane = Backplane::kReference;
  return config;
}

TEST(ValidateConfiguration, AllReasonsInTheirOrder) {
  AttentionConfig config = config_for_reference();
  config.head_size = 4;
  config.dtype = DType::kInt8;
  config.block_size = 20;
  config.use_mla = config.has_sink = config.use_sparse = config.use_mm_prefix = true;
  config.use_per_head_quant_scales = config.use_non_causal = config.use_alibi_sqrt = true;
  config.attn_type = AttentionType::kEncoder;
  config.kv_cache_dtype = KVCacheDType::kFp8E4M3;
  config.backplane = Backplane::kCuda;
  config.device_capability = {7, 5};
  const std::vector<std::string> reasons = backend("XFORMERS").validate_configuration(config);
  const std::vector<std::string> want = {"head_size not supported",
                                         "dtype not supported",
                                         "block_size not supported",
                                         "partial multimodal token full attention not supported",
                                         "MLA not supported",
                                         "attention sinks not supported",
                                         "sparse not supported",
                                         "per-head quant scales not supported",
                                         "compute capability not supported",
                                         "attention type encoder not supported",
                                         "non-causal attention not supported",
                                         "quantised kv_cache_dtype fp8_e4m3",
                                         "square-root ALiBi not supported"};
  ASSERT_GE(reasons.size(), want.size());
  for (std::size_t i = 0; i < want.size(); ++i) {
    EXPECT_EQ(reasons[i].substr(0, want[i].size()), want[i]) << i;
  }
}

TEST(ValidateConfiguration, WhatAllBackendsRun) {
  for (const AttentionBackend* each : builtin_backends()) {
    for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      for (const KVCacheDType cache : all_kv_cache_dtypes()) {
        AttentionConfig config = config_for_reference();
        config.dtype = dtype;
        config.kv_cache_dtype = cache;
        config.use_output_quant = config.use_batch_invariant = config.use_kv_connector = true;
        EXPECT_TRUE(each->validate_configuration(config).empty()) << each->name();
      }
    }
  }
}

TEST(Names, AttentionTypes) {
  for (const AttentionType type : {AttentionType::kDecoder, AttentionType::kEncoder, AttentionType::kEncoderOnly,
                                   AttentionType::kEncoderDecoder}) {
    EXPECT_EQ(*parse_attention_type(attention_type_name(type)), type);
  }
  const auto unknown = parse_attention_type("both");
  EXPECT_NE(unknown.status().message().find("encoder_decoder"), std::string::npos);
  EXPECT_NE(unknown.status().message().find("'both'"), std::string::npos);
}

TEST(CapabilityTable, SameRowsForAll) {
  const std::vector<Capability> first = capability_table(backend("TREE_ATTN"));
  std::set<std::string_view> names;
  for (const Capability& row : first) names.insert(row.name);
  EXPECT_EQ(names.size(), first.size());
  for (const AttentionBackend* each : builtin_backends()) {
    const std::vector<Capability> table = capability_table(*each);
    ASSERT_EQ(table.size(), first.size());
    for (std::size_t i = 0; i < table.size(); ++i) {
      EXPECT_EQ(table[i].name, first[i].name);
      EXPECT_FALSE(table[i].value.empty()) << each->name() << " " << table[i].name;
    }
  }
}

}  // namespace
}  // namespace quire::test
