// Generated attention cases on the device against the float64 reference: any shape, shapes of the fast kernels, prompts
// (of pairs of heads too), batches of single tokens and of a few. QUIRE_PROPERTY_CASES sets their number (default 3,000
// of each kind), QUIRE_PROPERTY_SEED the first seed.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string>

#include "cuda/tuning.h"
#include "gpu/device_case.h"

namespace quire::testing {
namespace {

constexpr std::uint64_t kShards = 8;

std::uint64_t environment_number(const char* name, std::uint64_t fallback) {
  const char* text = std::getenv(name);
  return text == nullptr ? fallback : std::strtoull(text, nullptr, 10);
}

// A random shape with a head size, a dtype and lengths that the split kernels take.
CaseShape fast_shape(std::uint64_t seed) {
  CaseShape shape = random_shape(seed);
  Random random(seed ^ 0xfa57);
  if (shape.dtype == DType::kFloat32) {
    shape.dtype = DType::kBFloat16;
    if (shape.output_dtype == DType::kFloat32) shape.output_dtype = DType::kBFloat16;
  }
  const DType model = shape.dtype;
  const bool mixed = (shape.cache_dtype == KVCacheDType::kFloat16 && model != DType::kFloat16) ||
                     (shape.cache_dtype == KVCacheDType::kBFloat16 && model != DType::kBFloat16) ||
                     shape.cache_dtype == KVCacheDType::kFloat32;
  if (mixed) shape.cache_dtype = KVCacheDType::kAuto;
  shape.head_size = random.pick({64, 96, 128, 128, 192, 256});
  if (shape.is_differential()) shape.head_size = 64;
  shape.head_size_v = shape.head_size == 192 && shape.format == KVCacheFormat::kPackedKV ? 128 : shape.head_size;
  shape.scale = static_cast<float>(1.0 / std::sqrt(shape.head_size));
  shape.mm_ranges = 0;
  if (shape.block_size < 8) shape.block_size = 16;
  // Every fourth batch has a long request, so that its keys are split over many blocks.
  if (random.chance(0.25) && !shape.requests.empty() && shape.requests[0].tree_parents.empty()) {
    shape.requests[0].seq_len += random.between(500, 3000);
  }
  return shape;
}

// A random shape of many rows a request: prompts and large trees, as the kernel on wgmma takes them.
CaseShape prompt_shape(std::uint64_t seed) {
  CaseShape shape = fast_shape(seed);
  Random random(seed ^ 0x9a77);
  shape.contiguous = false;
  shape.format = random.pick({KVCacheFormat::kBlockFirst, KVCacheFormat::kKVFirst, KVCacheFormat::kPackedKV});
  if (shape.format == KVCacheFormat::kKVFirst) shape.layout = KVCacheLayout::kNHD;
  if (shape.format == KVCacheFormat::kKVFirst) shape.num_layers = 1;
  shape.head_size = random.pick({64, 96, 128, 128, 128, 192, 256});
  shape.head_size_v = shape.head_size == 192 && shape.format == KVCacheFormat::kPackedKV ? 128 : shape.head_size;
  if (shape.dtype != DType::kFloat16) shape.dtype = DType::kBFloat16;
  shape.output_dtype = random.chance(0.2) ? DType::kFloat32 : shape.dtype;
  shape.cache_dtype = KVCacheDType::kAuto;
  shape.output_scale = 0.0f;
  shape.output_block_scales = false;
  shape.query_scale = 1.0f;
  shape.softcap = 0.0f;
  shape.alibi = AlibiKind::kNone;
  shape.tree_bias = false;
  shape.block_size = random.pick({8, 16, 16, 24, 32, 48, 64, 128, 256});
  for (RequestShape& request : shape.requests) {
    const std::int32_t context = request.seq_len - request.query_len;
    const bool is_tree = !request.tree_parents.empty();
    const std::int32_t most = context > 400 ? 48 : is_tree ? 140 : 300;
    if (request.query_len > 0) request.query_len = random.between(2, most);
    request.seq_len = context + request.query_len;
    request.tree_parents.clear();
    for (std::int32_t node = 1; is_tree && node < request.query_len; ++node) {
      request.tree_parents.push_back(random.between(0, node - 1));
    }
  }
  return shape;
}

// The same for differential attention.
CaseShape pair_shape(std::uint64_t seed) {
  CaseShape shape = prompt_shape(seed);
  Random random(seed ^ 0xd1ff);
  shape.format = KVCacheFormat::kDifferential;
  shape.layout = KVCacheLayout::kNHD;
  shape.num_layers = 1;
  shape.num_kv_heads = random.pick({2, 2, 4});
  shape.head_size = shape.head_size_v = 64;
  return shape;
}

// A fast shape with an 8-bit cache, heads side by side and few rows a request, as the wide decode kernels take them.
CaseShape wide_shape(std::uint64_t seed) {
  CaseShape shape = fast_shape(seed);
  Random random(seed ^ 0x81de);
  shape.contiguous = false;
  shape.format = KVCacheFormat::kBlockFirst;
  if (random.chance(0.9)) shape.layout = KVCacheLayout::kNHD;
  shape.cache_dtype =
      random.pick({KVCacheDType::kFp8E4M3, KVCacheDType::kFp8PerTokenHead, KVCacheDType::kInt8PerTokenHead});
  const bool has_row_scales = shape.cache_dtype != KVCacheDType::kFp8E4M3;
  if (has_row_scales && shape.dtype == DType::kFloat8E4M3) shape.dtype = DType::kBFloat16;
  shape.k_scale = has_row_scales ? 1.0f : 0.25f;
  shape.v_scale = has_row_scales ? 1.0f : 0.5f;
  shape.scales = random.chance(0.5) ? ScalePlacement::kSeparate : ScalePlacement::kInline;
  shape.num_kv_heads = random.pick({4, 8, 8, 12});
  shape.group_size = random.pick({1, 2, 4, 4, 7});
  shape.head_size = shape.head_size_v = 128;
  for (RequestShape& request : shape.requests) {
    request.query_len = std::min(request.query_len, 8 / shape.group_size);
    request.tree_parents.resize(
        std::min(request.tree_parents.size(), static_cast<std::size_t>(std::max(request.query_len - 1, 0))));
  }
  return shape;
}

// A fast shape of one token a request and terms that only mask, as the token decode kernels take them.
CaseShape token_shape(std::uint64_t seed) {
  CaseShape shape = prompt_shape(seed);
  Random random(seed ^ 0x70c3);
  shape.block_size = random.pick({16, 16, 32, 64, 128, 8, 24});
  shape.group_size = random.pick({1, 2, 4, 4, 4, 7, 8});
  const std::size_t drawn = shape.requests.size();
  const auto copies = static_cast<std::size_t>(random.pick({1, 1, 4, 16}));
  for (std::size_t i = 0; drawn > 0 && i < drawn * copies && shape.requests.size() < 70; ++i) {
    RequestShape request = shape.requests[i % drawn];
    request.seq_len = random.between(1, 400);
    shape.requests.push_back(request);
  }
  for (RequestShape& request : shape.requests) {
    request.seq_len = std::max(request.seq_len, 1);
    request.query_len = random.chance(0.95) ? 1 : 0;
    request.tree_parents.clear();
  }
  return shape;
}

// The same of a few tokens a request, 17 to 32 rows at most, in chains and trees.
CaseShape few_tokens_shape(std::uint64_t seed) {
  CaseShape shape = prompt_shape(seed);
  Random random(seed ^ 0xfe35);
  shape.head_size = shape.head_size_v = 128;
  shape.block_size = random.pick({16, 16, 16, 32, 64, 8});
  shape.group_size = random.pick({1, 2, 4, 4, 4, 7, 8});
  const std::int32_t most = 32 / shape.group_size;
  for (RequestShape& request : shape.requests) {
    const std::int32_t context = request.seq_len - request.query_len;
    if (request.query_len > 0) request.query_len = random.chance(0.6) ? most : random.between(1, most);
    request.seq_len = context + request.query_len;
    const bool is_tree = random.chance(0.7);
    request.tree_parents.clear();
    for (std::int32_t node = 1; is_tree && node < request.query_len; ++node) {
      request.tree_parents.push_back(random.between(0, node - 1));
    }
  }
  return shape;
}

// `planned_keys`: what a plan for more than the batch says, if it is more.
void check_case(const CaseShape& shape, KVSplits splits, std::int32_t planned_keys) {
  AttentionCase c(shape);
  DeviceCase device(c, planned_keys);
  const std::string what = describe(shape);
  const Runtime runtime{.backplane = Backplane::kCuda, .splits = splits};
  const Status status = device.run(runtime);
  ASSERT_TRUE(status.ok()) << status.to_string() << "\n" << what;
  const Comparison result = compare_tensor_cores_with_reference(c);
  EXPECT_LE(result.worst_ratio, 1.0) << what;
  EXPECT_LE(result.nmse, result.nmse_bound) << what;
  EXPECT_LE(result.worst_lse, result.lse_bound) << what;
  EXPECT_TRUE(device.is_memory_intact()) << what;
}

class GpuProperty : public ::testing::TestWithParam<std::uint64_t> {
 protected:
  void SetUp() override {
    if (const std::string missing = missing_device(); !missing.empty()) GTEST_SKIP() << missing;
  }

  template <class Shape>
  void run(Shape&& shape_of, std::int32_t planned_keys = 0) {
    const std::uint64_t cases = environment_number("QUIRE_PROPERTY_CASES", 3000);
    const std::uint64_t first = environment_number("QUIRE_PROPERTY_SEED", 1);
    for (std::uint64_t i = GetParam(); i < cases; i += kShards) {
      check_case(shape_of(first + i), i / kShards % 4 == 0 ? KVSplits::kFixed : KVSplits::kBalanced, planned_keys);
      ASSERT_FALSE(HasFatalFailure()) << "seed " << first + i;
    }
  }
};

TEST_P(GpuProperty, AnyShapeEqualsFloat64) { run(random_shape); }
TEST_P(GpuProperty, FastShapesEqualFloat64) { run(fast_shape); }
TEST_P(GpuProperty, WideShapesEqualFloat64) { run(wide_shape, cuda::kWideKeys); }
TEST_P(GpuProperty, PromptShapesEqualFloat64) { run(prompt_shape); }
TEST_P(GpuProperty, PairShapesEqualFloat64) { run(pair_shape); }
TEST_P(GpuProperty, TokenShapesEqualFloat64) { run(token_shape); }
TEST_P(GpuProperty, FewTokensShapesEqualFloat64) { run(few_tokens_shape); }

INSTANTIATE_TEST_SUITE_P(Shards, GpuProperty, ::testing::Range<std::uint64_t>(0, kShards));

}  // namespace
}  // namespace quire::testing
