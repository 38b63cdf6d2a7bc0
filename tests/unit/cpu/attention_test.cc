// The CPU kernels against the float64 reference, on every ISA: dtypes, shapes, terms, streams, outputs.
#include "unit/cpu/problem.h"

namespace quire::cpu::test {
namespace {

// Rounding of weights and of the output. With bfloat16 products a weight is off by 2^-9 of itself, so an output by at
// most 2^-9 of the values' magnitude; the largest output is smaller than the largest value, hence the factor.
double bound_of(const Shape& shape, Isa isa) {
  const bool bf16 = isa == Isa::kAvx512Bf16 && shape.query != DType::kFloat32 && shape.query != DType::kFloat16;
  double bound = bf16 ? 8 * 0x1p-9 : 64 * 0x1p-24 * std::sqrt(static_cast<double>(shape.head_size));
  if (shape.output == DType::kBFloat16) bound += 0x1p-8;
  if (shape.output == DType::kFloat16) bound += 0x1p-11;
  if (shape.output == DType::kFloat8E4M3) bound += 0x1p-4;
  return bound;
}

void check(Isa isa, const Shape& shape) {
  Problem problem(shape);
  problem.run(isa);
  if (::testing::Test::HasFatalFailure()) return;
  problem.expect_close(bound_of(shape, isa), 2e-4);
}

class Attention : public EachIsa {};

TEST_P(Attention, Plain) { check(GetParam(), {}); }

TEST_P(Attention, EveryQueryAndCacheDtype) {
  for (DType query : {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat8E4M3, DType::kFloat8E5M2}) {
    for (DType kv :
         {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat8E4M3, DType::kFloat8E5M2, DType::kInt8}) {
      SCOPED_TRACE(std::string(dtype_name(query)) + " with " + std::string(dtype_name(kv)));
      Shape shape{.query = query, .kv = kv, .output = DType::kBFloat16};
      if (kv == DType::kInt8) shape.key_scale = shape.value_scale = 2.0f / 127;
      shape.query_scale = 0.7f;
      check(GetParam(), shape);
    }
  }
}

TEST_P(Attention, EveryOutput) {
  check(GetParam(), {.output = DType::kFloat16});
  check(GetParam(), {.output = DType::kBFloat16});
  check(GetParam(), {.output = DType::kFloat8E4M3, .output_scale = 0.01f});
  check(GetParam(), {.q_heads = 6, .head_size_v = 40, .output = DType::kFloat8E4M3, .block_scales = true});
}

TEST_P(Attention, HeadSizesAndGroups) {
  for (std::int32_t size : {1, 7, 8, 24, 40, 64, 80, 96, 128, 130, 192, 256}) {
    SCOPED_TRACE(size);
    check(GetParam(), {.q_heads = 7, .kv_heads = 1, .head_size = size, .head_size_v = size});
    check(GetParam(), {.q_heads = 3,
                       .kv_heads = 3,
                       .head_size = size,
                       .head_size_v = 257 - size,
                       .query = DType::kFloat32,
                       .kv = DType::kFloat32});
  }
}

TEST_P(Attention, Layouts) {
  for (std::int32_t block_size : {0, 1, 3, 16, 48, 128}) {
    SCOPED_TRACE(block_size);
    check(GetParam(), {.block_size = block_size});
    if (block_size > 0) check(GetParam(), {.block_size = block_size, .heads_first = true});
  }
}

TEST_P(Attention, RowScales) {
  check(GetParam(), {.kv = DType::kInt8, .row_scales = true});
  check(GetParam(), {.kv = DType::kFloat8E4M3, .row_scales = true, .variant = {.softcap = 4.0f, .window_left = 9}});
  check(GetParam(), {.streams = 2, .kv = DType::kInt8, .row_scales = true, .differential = {.lambda = 0.3f}});
}

TEST_P(Attention, Masks) {
  const std::vector<std::pair<std::int32_t, std::int32_t>> seqs{{1, 300}, {40, 170}, {130, 130}, {2, 2}};
  check(GetParam(), {.seqs = seqs, .variant = {.causal = false}});
  check(GetParam(), {.seqs = seqs, .variant = {.window_left = 0}});
  check(GetParam(), {.seqs = seqs, .variant = {.window_left = 70}});
  check(GetParam(), {.seqs = seqs, .variant = {.causal = false, .window_left = 33, .window_right = 5}});
  check(GetParam(), {.seqs = seqs, .variant = {.chunk = 64}});
  check(GetParam(), {.seqs = seqs, .variant = {.chunk = 50, .chunk_lookback = 1}});
  const std::vector<std::uint8_t> causal{1, 0, 1, 0};
  check(GetParam(), {.seqs = seqs, .variant = {.causal_per_seq = causal.data()}});
  const std::vector<std::int32_t> ranges{3, 9, 0, 0, 20, 60, 140, 160, 5, 100, 110, 129, 0, 1, 0, 0};
  check(GetParam(),
        {.seqs = seqs, .variant = {.window_left = 20, .mm_prefix_ranges = ranges.data(), .mm_prefix_max_ranges = 2}});
}

TEST_P(Attention, LogitTerms) {
  const std::vector<float> slopes{0.5f, 0.25f, 0.125f, 0.03f};
  const std::vector<float> sinks{1.5f, -2.0f, 0.25f, 7.0f};
  check(GetParam(), {.variant = {.softcap = 2.0f}});
  check(GetParam(), {.variant = {.sinks = sinks.data()}});
  check(GetParam(), {.variant = {.window_left = 3, .sinks = sinks.data()}});
  for (AlibiKind kind : {AlibiKind::kLinear, AlibiKind::kSqrt, AlibiKind::kDistance}) {
    check(GetParam(), {.variant = {.alibi = kind, .alibi_slopes = slopes.data()}});
    check(GetParam(),
          {.variant = {
               .softcap = 9.0f, .causal = false, .alibi = kind, .alibi_slopes = slopes.data(), .sinks = sinks.data()}});
  }
}

TEST_P(Attention, Trees) {
  // Three sequences: 70 nodes (two words a row) where node r sees every node that divides r + 1, none, and a chain
  // of 5.
  std::vector<std::uint64_t> mask(70 * 2 + 5, 0);
  std::vector<float> bias(70 * 70 + 25);
  for (std::size_t i = 0; i < bias.size(); ++i) bias[i] = static_cast<float>(i % 13) * 0.1f;
  for (std::size_t row = 0; row < 70; ++row) {
    for (std::size_t node = 0; node <= row; ++node) {
      if ((row + 1) % (node + 1) == 0) mask[2 * row + node / 64] |= 1ull << (node % 64);
    }
  }
  for (std::size_t row = 0; row < 5; ++row) mask[140 + row] = (2ull << row) - 1;
  const std::vector<std::int32_t> sizes{70, 0, 5};
  const std::vector<std::int64_t> mask_offset{0, 0, 140};
  const std::vector<std::int64_t> bias_offset{0, 0, 4900};
  Shape shape{.seqs = {{70, 200}, {4, 9}, {5, 66}}};
  shape.variant.tree = {.size = sizes.data(), .mask_offset = mask_offset.data(), .mask = mask.data()};
  check(GetParam(), shape);
  shape.variant.tree.bias_offset = bias_offset.data();
  shape.variant.tree.bias = bias.data();
  check(GetParam(), shape);
}

TEST_P(Attention, Differential) {
  const std::vector<float> weight(2 * 40, 1.25f);
  Shape shape{.streams = 2, .differential = {.lambda = 0.8f}};
  shape.head_size_v = 40;
  check(GetParam(), shape);
  shape.differential.subln_weight = weight.data();
  shape.differential.post_scale = 0.2f;
  shape.output = DType::kBFloat16;
  check(GetParam(), shape);
  shape.query = DType::kFloat32;
  shape.kv = DType::kFloat32;
  shape.q_heads = 12;
  check(GetParam(), shape);
}

TEST_P(Attention, RowsWithoutKeysAndEmptySequences) {
  const std::vector<float> sinks{0.5f, -1.0f, 2.0f, 0.0f};
  const Shape shape{.seqs = {{3, 3}, {0, 5}, {2, 0}, {4, 1}, {1, 1}}, .variant = {.window_left = 2}};
  check(GetParam(), shape);
  Shape with_sinks = shape;
  with_sinks.variant.sinks = sinks.data();
  check(GetParam(), with_sinks);
}

TEST_P(Attention, HugeLogitsStayFinite) {
  Shape shape;
  shape.variant.scale = 30000.0f;
  shape.variant.softcap = 20.0f;
  check(GetParam(), shape);
}

TEST_P(Attention, SplitsOverKeys) {
  check(GetParam(), {.seqs = {{1, 5000}, {3, 2049}, {40, 3100}}, .head_size = 16, .head_size_v = 16});
  check(GetParam(), {.seqs = {{1, 5000}, {2, 2100}}, .head_size = 16, .head_size_v = 16, .streams = 2});
}

INSTANTIATE_TEST_SUITE_P(Cpu, Attention, ::testing::Values(Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16),
                         isa_test_name);

}  // namespace
}  // namespace quire::cpu::test
