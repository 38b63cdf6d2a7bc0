// The C API against C++ on every runtime: the same bits from layers, batches with trees, ranges and flags, the fused
// rotation, the cache's moves and merges.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>

#include "core/convert.h"
#include "quire/ops.h"
#include "unit/backends/c_layer.h"

namespace quire::test {
namespace {

class CApiParity : public ::testing::TestWithParam<Backplane> {
 protected:
  void SetUp() override {
    for (const Runtime& runtime : test_runtimes()) {
      if (runtime.backplane == GetParam()) runtime_ = runtime;
    }
    if (runtime_.backplane != GetParam()) GTEST_SKIP() << "no CUDA device";
  }
  LayerSetup setup() const {
    LayerSetup setup;
    setup.config.runtime = runtime_;
    return setup;
  }
  QuireRuntime runtime() const {
    return {static_cast<std::int32_t>(runtime_.backplane), static_cast<std::int32_t>(runtime_.isa), 0, nullptr, 0};
  }

  Runtime runtime_;
};

void expect_same_bits(const LayerSetup& setup, const std::string& what) {
  SCOPED_TRACE(what);
  LayerRun run(setup);
  const Status status = run.forward();
  ASSERT_TRUE(status.ok()) << status.to_string();
  CLayer layer(run);
  ASSERT_EQ(layer.make(), QUIRE_OK) << quire_last_error();
  ASSERT_EQ(layer.forward(), QUIRE_OK) << quire_last_error();
  EXPECT_EQ(std::memcmp(layer.output.data(), run.output.data(), run.output.size() * sizeof(float)), 0);
  EXPECT_EQ(std::memcmp(layer.lse.data(), run.lse.data(), run.lse.size() * sizeof(float)), 0);
}

TEST_P(CApiParity, TermsOfALayer) {
  const std::vector<float> slopes = {0.5f, 0.25f, 0.125f, 0.0625f}, sinks = {0.1f, -1.0f, 2.0f, 0.0f};
  for (const AlibiKind alibi : {AlibiKind::kNone, AlibiKind::kLinear, AlibiKind::kSqrt, AlibiKind::kDistance}) {
    LayerSetup with = setup();
    with.config.alibi = alibi;
    with.config.alibi_slopes = slopes;
    with.config.sinks = sinks;
    with.config.logits_soft_cap = 5.0f;
    with.config.sliding_window = 11;
    expect_same_bits(with, "alibi " + std::to_string(static_cast<int>(alibi)));
  }
  LayerSetup chunked = setup();
  chunked.config.chunk = 8;
  chunked.config.chunk_lookback = 1;
  chunked.config.runtime.splits = KVSplits::kFixed;
  expect_same_bits(chunked, "chunk");
}

TEST_P(CApiParity, LambdaInitOfADifferentialLayer) {
  const std::vector<float> row(16, 0.1f), norm(32, 1.5f);
  LayerSetup with = setup();
  with.backend = "DIFFERENTIAL_FLASH_ATTN";
  with.sequences = {{0, 33}, {13, 5}, {36, 1}};
  with.config.differential = DifferentialConfig{.layer_idx = 3,
                                                .lambda_init = {},
                                                .lambda_q1 = row,
                                                .lambda_k1 = row,
                                                .lambda_q2 = row,
                                                .lambda_k2 = norm,
                                                .subln_weight = norm};
  with.config.differential->lambda_k2 = row;
  expect_same_bits(with, "layer 3");
  with.config.differential->lambda_init = 0.3;
  expect_same_bits(with, "lambda_init");
}

TEST_P(CApiParity, SeparateScales) {
  for (const std::string_view backend : {"TRITON_ATTN", "TREE_ATTN"}) {
    const auto known = find_backend(backend).value()->supported_kv_cache_dtypes();
    for (const KVCacheDType dtype : {KVCacheDType::kInt8PerTokenHead, KVCacheDType::kFp8PerTokenHead}) {
      if (std::find(known.begin(), known.end(), dtype) == known.end()) continue;
      for (const ScalePlacement placement : {ScalePlacement::kInline, ScalePlacement::kSeparate}) {
        LayerSetup with = setup();
        with.backend = backend;
        with.config.kv_cache_dtype = dtype;
        with.config.scale_placement = placement;
        expect_same_bits(with, std::string(backend) + " " + std::string(kv_cache_dtype_name(dtype)));
      }
    }
  }
}

TEST_P(CApiParity, MmPrefixRanges) {
  LayerSetup with = setup();
  with.mm_ranges = {{}, {{3, 16}}, {{2, 9}, {20, 31}, {5, 5}}};
  expect_same_bits(with, "ranges");
  with.config.sliding_window = 6;
  expect_same_bits(with, "ranges and a window");
}

TEST_P(CApiParity, TreesOfRequestsAndOfTheLayer) {
  const std::int32_t bushy[] = {0, 0, 1, 2}, deep[] = {0, 1, 1, 0, 3, 2};
  const TokenTree first = TokenTree::from_parents(bushy).value(), second = TokenTree::from_parents(deep).value();
  LayerSetup with = setup();
  with.backend = "TREE_ATTN";
  with.sequences = {{36, 5}, {13, 1}, {0, 7}, {20, 7}};
  with.trees = {&first, nullptr, &second, &second};
  with.tree = TokenTree::chain(6).value();
  expect_same_bits(with, "trees");
  with.trees.clear();
  with.tree = TokenTree::parse("[(0,), (1,), (0, 0), (0, 1)]").value();
  with.sequences = {{36, 5}, {13, 5}};
  expect_same_bits(with, "the layer's tree");
}

TEST_P(CApiParity, CausalFlags) {
  LayerSetup with = setup();
  with.sequences = {{36, 4}, {13, 5}, {0, 9}};
  LayerRun run(with);
  ASSERT_TRUE(run.forward().ok());
  const std::vector<std::uint8_t> flags = {1, 0, 0};
  run.common.causal_per_seq = flags;
  run.metadata = run.builder->build(0, run.common).value();
  const std::vector<float> causal = run.output;
  ASSERT_TRUE(run.forward().ok());
  CLayer layer(run);
  layer.batch.causal_per_seq = flags.data();
  ASSERT_EQ(layer.make(), QUIRE_OK) << quire_last_error();
  ASSERT_EQ(layer.forward(), QUIRE_OK) << quire_last_error();
  EXPECT_EQ(layer.output, run.output);
  EXPECT_NE(layer.output, causal);
}

// Tensors of one update: rows of 5 tokens, 4 query and 2 key heads of 16.
struct Rotation {
  static constexpr std::int64_t kTokens = 5, kPositions = 64;
  std::vector<float> query = rows(4, 3), key = rows(2, 5), value = rows(2, 7), angles;
  std::vector<std::int64_t> positions = {9, 0, 63, 7, 1}, slots = {16, -1, 40, 18, 3};

  Rotation() : angles(kPositions * 16) {
    for (std::size_t i = 0; i < angles.size(); ++i) {
      const double angle = static_cast<double>(i / 16) / std::pow(10.0, static_cast<double>(i % 8));
      angles[i] = static_cast<float>(i % 16 < 8 ? std::cos(angle) : std::sin(angle));
    }
  }
  static std::vector<float> rows(std::size_t heads, int step) {
    std::vector<float> values(kTokens * heads * 16);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(static_cast<int>(i) * step % 17) - 8;
    return values;
  }
  static TensorView view(std::vector<float>& from, std::int64_t heads) {
    return make_tensor(from.data(), DType::kFloat32, {kTokens, heads, 16}).value();
  }
  TensorView angle_view() { return make_tensor(angles.data(), DType::kFloat32, {kPositions, 16}).value(); }
  TensorView position_view() { return make_tensor(positions.data(), DType::kInt64, {kTokens}).value(); }
  TensorView slot_view() { return make_tensor(slots.data(), DType::kInt64, {kTokens}).value(); }
};

// All tensors that an update reads or writes, on the runtime's device, in C++ and in C.
struct PlacedUpdate {
  PlacedUpdate(Rotation& from, LayerRun& run, DeviceCopies& copies, RopeStyle style)
      : key(copies.place(Rotation::view(from.key, 2))),
        value(copies.place(Rotation::view(from.value, 2))),
        cache(copies.place(run.args.kv_cache)),
        slots(copies.place(from.slot_view())),
        rope{.query = copies.place(Rotation::view(from.query, 4)),
             .positions = copies.place(from.position_view()),
             .cos_sin_cache = copies.place(from.angle_view()),
             .style = style},
        c{to_c(rope.query),         to_c(key),   to_c(value), to_c(rope.positions),
          to_c(rope.cos_sin_cache), to_c(cache), to_c(slots)},
        args{&c[0], &c[1], &c[2], &c[3], &c[4], static_cast<std::int32_t>(style), &c[5], &c[6]},
        k_scales(copies.place(run.layer.kv_scales.k_scale_cache)),
        v_scales(copies.place(run.layer.kv_scales.v_scale_cache)),
        c_scales{to_c(k_scales), to_c(v_scales)},
        scales{1.0f, 1.0f, 1.0f, &c_scales[0], &c_scales[1]} {}
  PlacedUpdate(const PlacedUpdate&) = delete;
  PlacedUpdate& operator=(const PlacedUpdate&) = delete;

  TensorView key, value, cache, slots;
  RopeArgs rope;
  QuireTensor c[7];
  QuireRopeUpdate args;
  TensorView k_scales, v_scales;
  QuireTensor c_scales[2];
  QuireScales scales;
};

std::vector<std::byte> bytes_of(const TensorView& tensor) {
  if (tensor.empty()) return {};
  const auto* data = tensor.as<const std::byte>();
  return {data, data + tensor.extent_elements() * dtype_bytes(tensor.dtype)};
}

TEST_P(CApiParity, FusedRotationAndUpdate) {
  for (const RopeStyle style : {RopeStyle::kNeox, RopeStyle::kGptj}) {
    for (const KVCacheDType dtype : {KVCacheDType::kAuto, KVCacheDType::kInt8PerTokenHead}) {
      SCOPED_TRACE(std::string(kv_cache_dtype_name(dtype)) + " style " + std::to_string(static_cast<int>(style)));
      LayerSetup with = setup();
      with.config.kv_cache_dtype = dtype;
      with.config.scale_placement = ScalePlacement::kSeparate;
      Rotation in_cpp, in_c;
      LayerRun first(with), second(with);
      ASSERT_TRUE(first.status.ok()) << first.status.to_string();
      DeviceCopies copies(runtime_), c_copies(runtime_);
      PlacedUpdate cpp(in_cpp, first, copies, style), c(in_c, second, c_copies, style);
      const AttentionLayer layer{
          .kv_scales = {
              .k_scale = 1.0f, .v_scale = 1.0f, .k_scale_cache = cpp.k_scales, .v_scale_cache = cpp.v_scales}};
      ASSERT_TRUE(
          first.impl->do_rope_and_kv_cache_update(layer, cpp.rope, cpp.key, cpp.value, cpp.cache, cpp.slots).ok());
      ASSERT_TRUE(copies.fetch().ok());
      CLayer own(second);
      ASSERT_EQ(own.make(), QUIRE_OK) << quire_last_error();
      ASSERT_EQ(quire_rope_and_kv_cache_update(own.impl.get(), &c.scales, &c.args), QUIRE_OK) << quire_last_error();
      ASSERT_TRUE(c_copies.fetch().ok());
      EXPECT_EQ(in_c.query, in_cpp.query);
      EXPECT_EQ(in_c.key, in_cpp.key);
      EXPECT_NE(in_c.query, Rotation().query);
      EXPECT_EQ(bytes_of(second.args.kv_cache), bytes_of(first.args.kv_cache));
      EXPECT_EQ(bytes_of(second.layer.kv_scales.k_scale_cache), bytes_of(first.layer.kv_scales.k_scale_cache));
      EXPECT_EQ(bytes_of(second.layer.kv_scales.v_scale_cache), bytes_of(first.layer.kv_scales.v_scale_cache));
      EXPECT_NE(bytes_of(second.args.kv_cache), bytes_of(LayerRun(with).args.kv_cache));
    }
  }
}

// What moves blocks, once in C++ on the host and once in C where the runtime is.
TEST_P(CApiParity, MovesOfBlocksAndTokens) {
  LayerSetup with = setup();
  with.config.kv_cache_dtype = KVCacheDType::kInt8PerTokenHead;
  LayerRun want(with), got(with), other(with), other_got(with);
  ASSERT_TRUE(want.status.ok()) << want.status.to_string();
  CLayer layer(got);
  ASSERT_EQ(layer.make(), QUIRE_OK) << quire_last_error();
  const KVCacheSpec spec{.format = KVCacheFormat::kBlockFirst,
                         .cache_dtype = with.config.kv_cache_dtype,
                         .model_dtype = with.config.dtype,
                         .num_blocks = want.metadata.num_blocks,
                         .block_size = 16,
                         .num_kv_heads = 2,
                         .head_size = 16};
  const KVSource source = bind_kv_cache(spec, want.args.kv_cache, {}).value();
  const KVSource second = bind_kv_cache(spec, other.args.kv_cache, {}).value();
  DeviceCopies copies(runtime_);
  const QuireTensor cache = to_c(copies.place(got.args.kv_cache)), more = to_c(copies.place(other_got.args.kv_cache));
  const QuireKVCache first{layer.backend, &layer.config, &cache, nullptr},
      then{layer.backend, &layer.config, &more, nullptr};
  const QuireRuntime where = runtime();
  layer.config.num_blocks = 1;  // the tensors know better

  const BlockPair copied[] = {{1, 2}, {2, 1}, {3, 0}};
  const QuireBlockPair c_copied[] = {{1, 2}, {2, 1}, {3, 0}};
  ASSERT_TRUE(copy_blocks({&source, 1}, copied).ok());
  ASSERT_EQ(quire_copy_blocks(&first, 1, c_copied, 3, &where), QUIRE_OK) << quire_last_error();
  const SlotPair moved[] = {{5, 3}, {7, 5}, {40, 17}};
  const QuireSlotPair c_moved[] = {{5, 3}, {7, 5}, {40, 17}};
  ASSERT_TRUE(move_tokens({&source, 1}, moved).ok());
  ASSERT_EQ(quire_move_tokens(&first, 1, c_moved, 3, &where), QUIRE_OK) << quire_last_error();
  ASSERT_TRUE(reset_kv_scales(second).ok());
  ASSERT_EQ(quire_reset_kv_scales(&then, &where), QUIRE_OK) << quire_last_error();
  const BlockPair swapped[] = {{0, 3}, {2, 1}};
  const QuireBlockPair c_swapped[] = {{0, 3}, {2, 1}};
  ASSERT_TRUE(swap_blocks(source, second, swapped).ok());
  ASSERT_EQ(quire_swap_blocks(&first, &then, c_swapped, 2, &where), QUIRE_OK) << quire_last_error();
  ASSERT_TRUE(copies.fetch().ok());
  EXPECT_EQ(bytes_of(got.args.kv_cache), bytes_of(want.args.kv_cache));
  EXPECT_EQ(bytes_of(other_got.args.kv_cache), bytes_of(other.args.kv_cache));
  EXPECT_NE(bytes_of(got.args.kv_cache), bytes_of(LayerRun(with).args.kv_cache));
}

TEST_P(CApiParity, MergeOfStates) {
  constexpr std::int64_t kTokens = 3;
  std::vector<float> outputs[4], sums[3];
  for (std::size_t i = 0; i < 4; ++i) outputs[i] = std::vector<float>(kTokens * 2 * 8, static_cast<float>(i));
  std::iota(outputs[0].begin(), outputs[0].end(), -7.0f);
  for (std::size_t i = 0; i < 3; ++i) sums[i] = std::vector<float>(2 * kTokens, static_cast<float>(i));
  std::vector<float> c_output = outputs[2], c_sum = sums[2];
  DeviceCopies copies(runtime_);
  const auto output = [&](std::vector<float>& from) {
    return copies.place(make_tensor(from.data(), DType::kFloat32, {kTokens, 2, 8}).value());
  };
  const auto sum = [&](std::vector<float>& from) {
    return copies.place(make_tensor(from.data(), DType::kFloat32, {2, kTokens}).value());
  };
  const MergeStatesArgs args{.prefix_output = output(outputs[0]),
                             .prefix_lse = sum(sums[0]),
                             .suffix_output = output(outputs[1]),
                             .suffix_lse = sum(sums[1]),
                             .output = output(outputs[2]),
                             .output_lse = sum(sums[2]),
                             .prefill_tokens_with_context = 2};
  const QuireTensor tensors[] = {to_c(args.prefix_output), to_c(args.prefix_lse),  to_c(args.suffix_output),
                                 to_c(args.suffix_lse),    to_c(output(c_output)), to_c(sum(c_sum))};
  QuireMergeStates c;
  ASSERT_EQ(quire_merge_states_init(&c), QUIRE_OK);
  EXPECT_EQ(c.prefill_tokens_with_context, -1);
  c.prefix_output = &tensors[0];
  c.prefix_lse = &tensors[1];
  c.suffix_output = &tensors[2];
  c.suffix_lse = &tensors[3];
  c.output = &tensors[4];
  c.output_lse = &tensors[5];
  c.prefill_tokens_with_context = 2;
  const QuireRuntime where = runtime();
  ASSERT_TRUE(merge_attn_states(args, runtime_).ok());
  ASSERT_EQ(quire_merge_attn_states(&c, &where), QUIRE_OK) << quire_last_error();
  ASSERT_TRUE(copies.fetch().ok());
  EXPECT_EQ(c_output, outputs[2]);
  EXPECT_EQ(c_sum, sums[2]);
  EXPECT_NE(c_output, outputs[3]);
}

INSTANTIATE_TEST_SUITE_P(Runtimes, CApiParity,
                         ::testing::Values(Backplane::kReference, Backplane::kCpu, Backplane::kCuda),
                         [](const auto& backplane) { return std::string(backplane_name(backplane.param)); });

}  // namespace
}  // namespace quire::test
