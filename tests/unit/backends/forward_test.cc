// Every backend's forward against attention by definition, on the reference and on the CPU.
#include <gtest/gtest.h>

#include <cmath>

#include "core/convert.h"
#include "unit/backends/layer_run.h"

namespace quire::test {
namespace {

// Float32 in, float32 arithmetic: what is left is the order of sums.
constexpr double kTolerance = 2e-5;

const std::vector<float> kSlopes = {0.5f, 0.25f, 0.125f, 0.0625f};
const std::vector<float> kSinks = {0.5f, -1.0f, 2.0f, 0.0f};

TokenTree uneven_tree() {
  const std::vector<TreePath> choices = {{0}, {1}, {0, 0}, {0, 1}, {0, 2}, {1, 0}, {0, 1, 0}};
  return TokenTree::from_choices(choices).value();
}

// Weights of a differential layer that live as long as the test.
struct DifferentialWeights {
  explicit DifferentialWeights(std::size_t size)
      : q1(size, 1.6f / static_cast<float>(size)),
        k1(size, 0.3f),
        q2(size, -3.2f / static_cast<float>(size)),
        k2(size, 0.05f),
        norm(2 * size, 1.5f) {}
  std::vector<float> q1, k1, q2, k2, norm;

  DifferentialConfig config() const {
    return {.layer_idx = 3,
            .lambda_init = {},
            .lambda_q1 = q1,
            .lambda_k1 = k1,
            .lambda_q2 = q2,
            .lambda_k2 = k2,
            .subln_weight = norm};
  }
};

LayerSetup setup_for(std::string_view backend) {
  static const DifferentialWeights kWeights(16);
  LayerSetup setup{.backend = backend};
  if (backend == "TRITON_ATTN_DIFFKV") setup.config.head_size_v = 24;
  if (backend != "DIFFERENTIAL_FLASH_ATTN") return setup;
  setup.config.differential = kWeights.config();
  setup.sequences = {{0, 33}, {20, 17}, {36, 1}};
  return setup;
}

void expect_dense(const LayerSetup& setup, double tolerance = kTolerance) {
  for (const Runtime& runtime : test_runtimes()) {
    LayerSetup own = setup;
    own.config.runtime = runtime;
    LayerRun run(own);
    const Status status = run.forward();
    ASSERT_TRUE(status.ok()) << status.to_string();
    EXPECT_LT(worst_difference(run.output, run.dense()), tolerance) << backplane_name(runtime.backplane);
  }
}

class EveryBackend : public testing::TestWithParam<std::string_view> {};

INSTANTIATE_TEST_SUITE_P(Forward, EveryBackend,
                         testing::Values("TREE_ATTN", "XFORMERS", "TRITON_ATTN", "TRITON_ATTN_DIFFKV",
                                         "DIFFERENTIAL_FLASH_ATTN"),
                         [](const auto& backend) { return std::string(backend.param); });

TEST_P(EveryBackend, PlainCausalBatch) {
  LayerSetup setup = setup_for(GetParam());
  if (GetParam() == "XFORMERS") setup.sequences = {{36, 1}, {17, 1}, {13, 5}, {0, 33}};
  if (GetParam() == "TREE_ATTN") setup.sequences = {{36, 1}, {17, 2}, {13, 5}, {0, 33}};
  expect_dense(setup);
}

TEST_P(EveryBackend, WindowSoftcapAndAlibi) {
  LayerSetup setup = setup_for(GetParam());
  setup.config.sliding_window = 9;
  setup.config.logits_soft_cap = 2.0f;
  setup.config.alibi_slopes = kSlopes;
  expect_dense(setup);
}

TEST_P(EveryBackend, ChunkedLocalAttention) {
  LayerSetup setup = setup_for(GetParam());
  setup.config.chunk = 16;
  expect_dense(setup);
}

TEST_P(EveryBackend, LongSequencesAreSplitOverTheirKeys) {
  LayerSetup setup = setup_for(GetParam());
  setup.sequences = {{2300, 1}};
  expect_dense(setup);
}

TEST_P(EveryBackend, QuantisedCachesComeClose) {
  for (const KVCacheDType dtype : {KVCacheDType::kFp8E4M3, KVCacheDType::kFp8E5M2, KVCacheDType::kInt8PerTokenHead,
                                   KVCacheDType::kFp8PerTokenHead, KVCacheDType::kBFloat16, KVCacheDType::kFloat16}) {
    LayerSetup setup = setup_for(GetParam());
    setup.config.kv_cache_dtype = dtype;
    SCOPED_TRACE(kv_cache_dtype_name(dtype));
    expect_dense(setup, dtype == KVCacheDType::kFp8E5M2 ? 0.6 : 0.3);
  }
}

TEST_P(EveryBackend, ScalesInTensorsOfTheirOwnGiveTheSameBits) {
  for (const Runtime& runtime : test_runtimes()) {
    LayerSetup setup = setup_for(GetParam());
    setup.config.runtime = runtime;
    setup.config.kv_cache_dtype = KVCacheDType::kInt8PerTokenHead;
    LayerRun beside(setup);
    setup.config.scale_placement = ScalePlacement::kSeparate;
    LayerRun apart(setup);
    ASSERT_TRUE(beside.forward().ok());
    const Status status = apart.forward();
    ASSERT_TRUE(status.ok()) << status.to_string();
    EXPECT_EQ(apart.output, beside.output);
  }
}

TEST_P(EveryBackend, PaddingAndGapsOfTheOutputStayAsTheyWere) {
  for (const Runtime& runtime : test_runtimes()) {
    LayerSetup setup = setup_for(GetParam());
    setup.config.runtime = runtime;
    LayerRun run(setup);
    ASSERT_TRUE(run.forward().ok());
    const std::vector<float> want = run.output;
    const std::size_t tokens = static_cast<std::size_t>(run.num_tokens());
    const std::size_t width = want.size() / tokens;
    std::vector<float> wide((tokens + 2) * (width + 5), 99.0f);
    run.args.output.data = wide.data();
    run.args.output.shape[0] += 2;
    run.args.output.strides[0] += 5;
    ASSERT_TRUE(run.forward().ok());
    for (std::size_t i = 0; i < wide.size(); ++i) {
      const std::size_t token = i / (width + 5), column = i % (width + 5);
      const bool written = token < tokens && column < width;
      ASSERT_EQ(wide[i], written ? want[token * width + column] : 99.0f) << i;
    }
  }
}

TEST_P(EveryBackend, SharedCachesAreReadAndNotWritten) {
  LayerSetup setup = setup_for(GetParam());
  setup.config.kv_sharing_target_layer_name = "layers.0";
  expect_dense(setup);
  LayerRun run(setup);
  EXPECT_TRUE(run.impl->do_kv_cache_update(run.layer, {}, {}, {}, {}).ok());
}

TEST_P(EveryBackend, BFloat16AndFloat16) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    LayerSetup setup = setup_for(GetParam());
    setup.config.dtype = dtype;
    expect_dense(setup, GetParam() == "DIFFERENTIAL_FLASH_ATTN" ? 0.05 : 0.02);
  }
}

// Sizes that tensor cores take: queries of a token, of a few and of many, and quantised caches.
TEST_P(EveryBackend, HeadsOf64InSixteenBits) {
  static const DifferentialWeights kWide(64);
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    for (const KVCacheDType cache_dtype :
         {KVCacheDType::kAuto, KVCacheDType::kFp8E4M3, KVCacheDType::kInt8PerTokenHead}) {
      LayerSetup setup = setup_for(GetParam());
      setup.config.dtype = dtype;
      setup.config.kv_cache_dtype = cache_dtype;
      setup.config.head_size = 64;
      setup.config.scale = 0.125f;
      if (setup.config.head_size_v != 0) setup.config.head_size_v = 128;
      if (setup.config.differential) setup.config.differential = kWide.config();
      setup.config.sliding_window = 600;
      const bool prefills_first = setup.config.differential.has_value();
      if (prefills_first) {
        setup.sequences = {{0, 70}, {10, 40}, {1300, 1}, {36, 1}};
      } else {
        setup.sequences = {{36, 1}, {1300, 1}, {10, 40}, {0, 70}};
      }
      const double tolerance = cache_dtype == KVCacheDType::kAuto ? 0.02 : 0.3;
      expect_dense(setup, prefills_first ? 5 * tolerance : tolerance);
    }
  }
}

TEST_P(EveryBackend, ProfilingRunWritesZeros) {
  for (const Runtime& runtime : test_runtimes()) {
    LayerSetup setup = setup_for(GetParam());
    setup.config.runtime = runtime;
    LayerRun run(setup);
    ASSERT_TRUE(run.forward().ok());
    ForwardArgs args = run.args;
    args.metadata = nullptr;
    // A slice of heads of padded rows: what lies between stays.
    const std::int64_t width = args.output.size(2);
    args.output.shape = {2, 2, width};
    args.output.strides = {4 * width, 2 * width, 1};
    DeviceCopies copies(runtime);
    const TensorView whole = copies.place(make_tensor(run.output.data(), DType::kFloat32, {8 * width}).value());
    args.output.data = whole.data;
    args.output.device = whole.device;
    const std::vector<float> before = run.output;
    ASSERT_TRUE(run.impl->forward(run.layer, args).ok());
    ASSERT_TRUE(copies.fetch().ok());
    for (std::size_t i = 0; i < before.size(); ++i) {
      const auto row = i / static_cast<std::size_t>(width);
      ASSERT_EQ(run.output[i], row < 8 && row % 2 == 0 ? 0.0f : before[i]) << i;
    }
  }
}

TEST_P(EveryBackend, OutputScaleQuantises) {
  LayerSetup setup = setup_for(GetParam());
  for (const Runtime& runtime : test_runtimes()) {
    setup.config.runtime = runtime;
    LayerRun run(setup);
    ASSERT_TRUE(run.forward().ok());
    const std::vector<float> exact = run.output;
    std::vector<std::uint8_t> bytes(exact.size());
    run.args.output.data = bytes.data();
    run.args.output.dtype = DType::kFloat8E4M3;
    run.args.output_scale = 0.5f;
    const Status status = run.forward();
    ASSERT_TRUE(status.ok()) << status.to_string();
    for (std::size_t i = 0; i < exact.size(); ++i) {
      ASSERT_NEAR(e4m3_to_float(bytes[i]) * 0.5f, exact[i], std::abs(exact[i]) / 15 + 1e-3) << i;
    }
  }
}

TEST_P(EveryBackend, BlockScalesQuantiseGroupsOf128) {
  LayerSetup setup = setup_for(GetParam());
  for (const Runtime& runtime : test_runtimes()) {
    setup.config.runtime = runtime;
    LayerRun run(setup);
    ASSERT_TRUE(run.forward().ok());
    const std::vector<float> exact = run.output;
    const std::size_t tokens = static_cast<std::size_t>(run.num_tokens());
    const std::size_t width = exact.size() / tokens;
    std::vector<std::uint8_t> bytes(exact.size());
    std::vector<float> scales(tokens);
    run.args.output.data = bytes.data();
    run.args.output.dtype = DType::kFloat8E4M3;
    run.args.output_block_scale = make_tensor(scales.data(), DType::kFloat32, {run.num_tokens(), 1}).value();
    const Status status = run.forward();
    ASSERT_TRUE(status.ok()) << status.to_string();
    for (std::size_t token = 0; token < tokens; ++token) {
      float largest = 0.0f;
      for (std::size_t i = 0; i < width; ++i) largest = std::max(largest, std::abs(exact[token * width + i]));
      ASSERT_NEAR(scales[token], largest / 448.0f, 1e-6f);
    }
  }
}

TEST_P(EveryBackend, Fp8QueriesTakeTheirScale) {
  LayerSetup setup = setup_for(GetParam());
  for (const Runtime& runtime : test_runtimes()) {
    setup.config.runtime = runtime;
    LayerRun run(setup);
    ASSERT_TRUE(run.forward().ok());
    const std::vector<float> exact = run.output;
    TensorView query = run.args.query;
    std::vector<std::uint8_t> codes(static_cast<std::size_t>(query.num_elements()));
    for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = float_to_e4m3(query.as<float>()[i] * 4.0f);
    run.args.query.data = codes.data();
    run.args.query.dtype = DType::kFloat8E4M3;
    run.layer.q_scale = 0.25f;
    const Status status = run.forward();
    ASSERT_TRUE(status.ok()) << status.to_string();
    EXPECT_LT(worst_difference(run.output, exact), 0.25);
    EXPECT_GT(worst_difference(run.output, exact), 0.0);
  }
}

TEST(TreeAttn, TreesOfAnyShapeOnlyForTheRequestsThatCarryThem) {
  LayerSetup setup{.backend = "TREE_ATTN"};
  setup.sequences = {{32, 8}, {3, 8}, {20, 3}, {5, 30}};
  setup.tree = uneven_tree();
  expect_dense(setup);
  setup.config.sinks = kSinks;
  setup.config.sliding_window = 12;
  expect_dense(setup);
  setup.config.kv_cache_dtype = KVCacheDType::kInt8PerTokenHead;
  expect_dense(setup, 0.1);
}

TEST(TreeAttn, EachRequestMayHaveItsOwnTree) {
  const TokenTree first = uneven_tree();
  const TokenTree second = TokenTree::from_choices(std::vector<TreePath>{{0}, {1}, {2}}).value();
  LayerSetup setup{.backend = "TREE_ATTN"};
  setup.sequences = {{32, 8}, {3, 4}, {20, 8}};
  setup.tree = uneven_tree();
  setup.trees = {&first, &second, nullptr};
  expect_dense(setup);
}

TEST(TreeAttn, ALaterDraftLevelSeesTheTreeWithoutItsRoot) {
  LayerSetup setup{.backend = "TREE_ATTN"};
  setup.sequences = {{33, 5}, {4, 5}};
  setup.tree = uneven_tree();
  setup.draft_index = 1;
  expect_dense(setup);
  setup.draft_index = 0;
  expect_dense(setup);
}

TEST(TritonAttn, SinksMmPrefixAndSquareRootAlibi) {
  LayerSetup setup;
  setup.config.sinks = kSinks;
  setup.config.alibi_slopes = kSlopes;
  setup.config.alibi = AlibiKind::kSqrt;
  expect_dense(setup);
  setup.config.sliding_window = 5;
  setup.mm_ranges = {{}, {{2, 16}}, {{4, 12}, {20, 31}}};
  expect_dense(setup);
}

TEST(TritonAttn, NonCausalRowsSeeAheadAsFarAsBehind) {
  LayerSetup setup;
  setup.causal = false;
  expect_dense(setup);
  setup.config.sliding_window = 4;
  expect_dense(setup);
}

TEST(TritonAttn, EncodersAttendOverTheirOwnKeys) {
  for (const AttentionType type : {AttentionType::kEncoder, AttentionType::kEncoderOnly}) {
    LayerSetup setup;
    setup.sequences = {{0, 33}, {0, 7}, {0, 64}};
    setup.config.attn_type = type;
    expect_dense(setup);
    setup.config.sliding_window = 1;
    expect_dense(setup);
    setup.config.sliding_window = 9;
    setup.config.logits_soft_cap = 3.0f;
    setup.config.alibi_slopes = kSlopes;
    setup.config.sinks = kSinks;
    expect_dense(setup);
  }
}

TEST(TritonAttn, CrossAttentionSeesAllEncoderKeys) {
  LayerSetup setup;
  setup.config.attn_type = AttentionType::kEncoderDecoder;
  setup.sequences = {{7, 1}, {0, 5}};
  setup.encoder_seq_lens = {40, 3};
  expect_dense(setup);
}

TEST(DiffKV, ValuesMayBeNarrowerAndQuantised) {
  LayerSetup setup = setup_for("TRITON_ATTN_DIFFKV");
  setup.config.head_size_v = 8;
  setup.config.sinks = kSinks;
  setup.mm_ranges = {{}, {{2, 16}}, {{4, 12}}};
  expect_dense(setup);
  setup.config.kv_cache_dtype = KVCacheDType::kInt8PerTokenHead;
  expect_dense(setup, 0.05);
}

TEST(TritonAttn, HeadsBeforeTokens) {
  LayerSetup setup;
  setup.config.layout = KVCacheLayout::kHND;
  expect_dense(setup);
  setup.config.kv_cache_dtype = KVCacheDType::kInt8PerTokenHead;
  expect_dense(setup, 0.1);
}

}  // namespace
}  // namespace quire::test
