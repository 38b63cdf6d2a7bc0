// A row's result has the same bits for any number of threads, any batch around it and any chunking of its prompt, and
// what lies in keys that it does not see cannot reach it.
#include "unit/cpu/problem.h"

namespace quire::cpu::test {
namespace {

class SameBits : public EachIsa {};

Shape long_prompt(DType dtype) {
  return {.seqs = {{2200, 2200}, {1, 70}, {9, 1500}},
          .q_heads = 4,
          .head_size = 16,
          .head_size_v = 24,
          .query = dtype,
          .kv = dtype,
          .output = dtype};
}

// Copies sequence `seq` of `whole` from row `first`, `count` rows, into a batch of its own that reads the same cache.
struct Piece {
  AttentionArgs args;
  std::vector<std::int32_t> starts, lens;
  std::vector<std::byte> output;
  std::vector<float> lse;

  Piece(const Problem& whole, std::int32_t seq, std::int32_t first, std::int32_t count) : args(whole.args) {
    const auto at = static_cast<std::size_t>(seq);
    const std::int32_t context = whole.lens[at] - (whole.starts[at + 1] - whole.starts[at]);
    starts = {0, count};
    lens = {context + first + count};
    args.num_seqs = 1;
    args.num_tokens = count;
    args.query_start_loc = starts.data();
    args.seq_lens = lens.data();
    args.query =
        whole.query.data() + (whole.starts[at] + first) * args.query_token_stride * dtype_bytes(args.query_dtype);
    args.kv.block_table = whole.table.data() + seq * args.kv.block_table_stride;
    output.resize(static_cast<std::size_t>(count * whole.width() * dtype_bytes(args.output_dtype)));
    args.output = output.data();
    lse.resize(static_cast<std::size_t>(count * args.num_q_heads));
    args.lse = lse.data();
    args.lse_head_stride = count;
  }
  void run(Isa isa, const PlanConfig& config) {
    const AttentionPlan plan = make_attention_plan(config, starts, lens, args.variant);
    const Runtime runtime{.isa = isa, .num_threads = 2};
    std::vector<std::byte> workspace(attention_workspace_bytes(args, plan, runtime), std::byte{0xff});
    ASSERT_TRUE(attention(args, plan, runtime, workspace).ok());
  }
};

void expect_piece_equals(Problem& whole, Isa isa, std::int32_t seq, std::int32_t first, std::int32_t count) {
  Piece piece(whole, seq, first, count);
  piece.run(isa, whole.plan_config());
  const std::int64_t row = whole.starts[static_cast<std::size_t>(seq)] + first;
  const std::int64_t row_bytes = whole.width() * dtype_bytes(whole.args.output_dtype);
  ASSERT_EQ(std::memcmp(piece.output.data(), whole.output.data() + row * row_bytes, piece.output.size()), 0)
      << "rows " << first << " + " << count;
  for (std::int32_t head = 0; head < whole.args.num_q_heads; ++head) {
    ASSERT_EQ(std::memcmp(piece.lse.data() + head * count, whole.lse.data() + head * whole.args.num_tokens + row,
                          static_cast<std::size_t>(count) * sizeof(float)),
              0);
  }
}

TEST_P(SameBits, AnyThreadCount) {
  for (DType dtype : {DType::kBFloat16, DType::kFloat32}) {
    Problem problem(long_prompt(dtype));
    problem.run(GetParam(), 1);
    const std::vector<std::byte> first = problem.output;
    const std::vector<float> first_lse = problem.lse;
    for (int threads : {2, 3, 7}) {
      problem.run(GetParam(), threads);
      ASSERT_EQ(problem.output, first) << threads;
      ASSERT_EQ(std::memcmp(problem.lse.data(), first_lse.data(), first_lse.size() * sizeof(float)), 0);
    }
  }
}

TEST_P(SameBits, AnyChunkingAndBatch) {
  for (DType dtype : {DType::kBFloat16, DType::kFloat32}) {
    Problem whole(long_prompt(dtype));
    whole.run(GetParam());
    for (std::int32_t first = 0; first < 2200; first += 500) {
      expect_piece_equals(whole, GetParam(), 0, first, std::min(500, 2200 - first));
    }
    for (std::int32_t row : {0, 1, 15, 63, 64, 65, 500, 1023, 1024, 1025, 2047, 2048, 2199}) {
      expect_piece_equals(whole, GetParam(), 0, row, 1);
      if (row + 3 < 2200) expect_piece_equals(whole, GetParam(), 0, row, 3);
    }
    expect_piece_equals(whole, GetParam(), 1, 0, 1);
    for (std::int32_t row = 0; row < 9; ++row) expect_piece_equals(whole, GetParam(), 2, row, 1);
  }
}

TEST_P(SameBits, ChunkingWithTermsWindowAndStreams) {
  const std::vector<float> slopes{0.05f, 0.02f, 0.01f, 0.003f};
  Shape shape = long_prompt(DType::kBFloat16);
  shape.seqs = {{1300, 1300}, {3, 40}};
  shape.streams = 2;
  shape.differential.lambda = 0.4f;
  shape.variant = {.softcap = 5.0f, .window_left = 1100, .alibi = AlibiKind::kDistance, .alibi_slopes = slopes.data()};
  Problem whole(shape);
  whole.run(GetParam());
  for (std::int32_t row : {0, 64, 777, 1100, 1150, 1200, 1299}) expect_piece_equals(whole, GetParam(), 0, row, 1);
  expect_piece_equals(whole, GetParam(), 0, 1000, 300);
}

TEST_P(SameBits, AnyTileOfThePlan) {
  Problem problem(long_prompt(DType::kBFloat16));
  problem.run(GetParam());
  const std::vector<std::byte> first = problem.output;
  for (std::int32_t tile_rows : {2, 10, 300, 4000}) {
    PlanConfig config = problem.plan_config();
    config.tile_rows = tile_rows;
    problem.run_plan(GetParam(), 2, problem.plan(config));
    ASSERT_EQ(problem.output, first) << tile_rows;
  }
}

// NaN in the keys and values of late positions reaches late rows only.
TEST_P(SameBits, PoisonReachesOnlyRowsThatSeeIt) {
  for (DType dtype : {DType::kBFloat16, DType::kFloat32}) {
    Shape shape{.seqs = {{200, 200}}, .query = dtype, .kv = dtype, .output = DType::kFloat32};
    Problem problem(shape);
    problem.run(GetParam());
    const std::vector<std::byte> clean = problem.output;
    const KVSource& kv = problem.args.kv;
    for (std::int32_t pos : {90, 131}) {
      const std::int64_t page = problem.table[static_cast<std::size_t>(pos / 16)];
      for (const KVRows* rows : {&kv.key[0], &kv.value[0]}) {
        for (std::int32_t head = 0; head < 2; ++head) {
          const std::int64_t at =
              page * rows->page_stride + pos % 16 * rows->token_stride + head * rows->head_stride + 5;
          store_from_float(rows->data, dtype, at, pos == 90 ? INFINITY : NAN);
        }
      }
    }
    problem.run(GetParam());
    const std::size_t safe = static_cast<std::size_t>(90 * problem.width()) * sizeof(float);
    ASSERT_EQ(std::memcmp(problem.output.data(), clean.data(), safe), 0);
    const std::vector<double> out = problem.outputs();
    for (std::size_t i = 0; i < safe / sizeof(float); ++i) ASSERT_TRUE(std::isfinite(out[i]));
    ASSERT_TRUE(std::isnan(out.back()));
  }
}

TEST_P(SameBits, WorkspaceTooSmallIsAnError) {
  Problem problem({});
  const AttentionPlan plan = problem.plan(problem.plan_config());
  const Runtime runtime{.isa = GetParam(), .num_threads = 1};
  std::vector<std::byte> workspace(attention_workspace_bytes(problem.args, plan, runtime) - 1);
  EXPECT_EQ(attention(problem.args, plan, runtime, workspace).code(), StatusCode::kResourceExhausted);
}

INSTANTIATE_TEST_SUITE_P(Cpu, SameBits, ::testing::Values(Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16),
                         isa_test_name);

}  // namespace
}  // namespace quire::cpu::test
