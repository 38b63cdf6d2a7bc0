// paged_attention's checks, the laws of merging attention states, and cascade attention against attention in one go.
#include "quire/ops.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <random>

#include "core/convert.h"
#include "unit/backends/layer_run.h"

namespace quire::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr std::int32_t kHeads = 4, kKVHeads = 2, kHeadSize = 16, kBlockSize = 16, kBlocks = 24;

// Requests whose first 32 keys are the same two blocks; pages hold random rows.
struct SharedPrefixBatch {
  std::vector<std::int32_t> starts = {0, 1, 6, 6, 26};
  std::vector<std::int32_t> seq_lens = {40, 70, 0, 52};
  std::vector<std::int32_t> table = {7, 3, 10, 0, 0, 7, 3, 11, 12, 13, 0, 0, 0, 0, 0, 7, 3, 14, 15, 0};
  std::vector<float> query, keys, values, output, lse;
  std::vector<float> slopes = {0.5f, 0.25f, 0.125f, 0.0625f};
  std::vector<float> sinks = {0.5f, -1.0f, 2.0f, 0.0f};
  std::vector<std::int32_t> ranges = {0, 0, 66, 68, 0, 0, 30, 45};
  AttentionArgs args;
  PlanConfig config{.rows_per_token = kHeads / kKVHeads};
  Runtime runtime;

  explicit SharedPrefixBatch(const Runtime& where) : runtime(where) {
    std::mt19937_64 random(7);
    std::normal_distribution<float> normal;
    const auto fill = [&](std::vector<float>& values_of, std::int32_t count) {
      values_of.resize(static_cast<std::size_t>(count));
      for (float& value : values_of) value = normal(random);
    };
    const std::int32_t tokens = starts.back();
    fill(query, tokens * kHeads * kHeadSize);
    fill(keys, kBlocks * kBlockSize * kKVHeads * kHeadSize);
    fill(values, kBlocks * kBlockSize * kKVHeads * kHeadSize);
    output.assign(query.size(), 99.0f);
    lse.assign(static_cast<std::size_t>(tokens * kHeads), 99.0f);
    const KVRows rows{.page_stride = kBlockSize * kKVHeads * kHeadSize,
                      .token_stride = kKVHeads * kHeadSize,
                      .head_stride = kHeadSize};
    args.query = query.data();
    args.output = output.data();
    args.query_token_stride = args.output_token_stride = kHeads * kHeadSize;
    args.query_head_stride = args.output_head_stride = kHeadSize;
    args.lse = lse.data();
    args.lse_head_stride = tokens;
    args.num_seqs = static_cast<std::int32_t>(seq_lens.size());
    args.num_tokens = tokens;
    args.num_q_heads = kHeads;
    args.query_start_loc = starts.data();
    args.seq_lens = seq_lens.data();
    args.kv.key[0] = args.kv.value[0] = rows;
    args.kv.key[0].data = keys.data();
    args.kv.value[0].data = values.data();
    args.kv.num_kv_heads = kKVHeads;
    args.kv.head_size = args.kv.head_size_v = kHeadSize;
    args.kv.block_table = table.data();
    args.kv.block_table_stride = 5;
    args.kv.num_blocks = kBlocks;
    args.kv.block_size = kBlockSize;
    args.variant.scale = 0.25f;
  }

  AttentionPlan plan() const { return make_attention_plan(config, starts, seq_lens, args.variant); }

  // The arguments with everything where the runtime runs.
  AttentionArgs placed(DeviceCopies& copies) const {
    AttentionArgs there = args;
    if (!copies.on_device()) return there;
    there.query = copies.place(query);
    there.output = const_cast<float*>(copies.place(output));
    there.lse = const_cast<float*>(copies.place(lse));
    there.query_start_loc = copies.place(starts);
    there.seq_lens = copies.place(seq_lens);
    there.kv.key[0].data = const_cast<float*>(copies.place(keys));
    there.kv.value[0].data = const_cast<float*>(copies.place(values));
    there.kv.block_table = copies.place(table);
    there.kv.device = {DeviceType::kCuda, 0};
    if (args.variant.alibi_slopes != nullptr) there.variant.alibi_slopes = copies.place(slopes);
    if (args.variant.sinks != nullptr) there.variant.sinks = copies.place(sinks);
    if (args.variant.mm_prefix_ranges != nullptr) there.variant.mm_prefix_ranges = copies.place(ranges);
    return there;
  }

  Status attend(const AttentionPlan& with) {
    DeviceCopies copies(runtime);
    const AttentionArgs there = placed(copies);
    const std::span<std::byte> workspace = copies.scratch(attention_workspace_bytes(there, with, runtime));
    QUIRE_RETURN_IF_ERROR(paged_attention(there, with, runtime, workspace));
    return copies.fetch();
  }
  Status attend() { return attend(plan()); }

  Status cascade(std::int32_t prefix_len) {
    QUIRE_ASSIGN_OR_RETURN(CascadePlan with, make_cascade_plan(args, prefix_len, config));
    QUIRE_RETURN_IF_ERROR(place_cascade_plan(with, runtime));
    DeviceCopies copies(runtime);
    const AttentionArgs there = placed(copies);
    const std::span<std::byte> workspace = copies.scratch(cascade_workspace_bytes(there, with, runtime));
    QUIRE_RETURN_IF_ERROR(cascade_attention(there, with, runtime, workspace));
    return copies.fetch();
  }
};

using Change = std::function<void(SharedPrefixBatch&)>;

void expect_same_result(const Change& change) {
  for (const Runtime& runtime : test_runtimes()) {
    SharedPrefixBatch whole(runtime);
    SharedPrefixBatch parts(runtime);
    change(whole);
    change(parts);
    ASSERT_TRUE(whole.attend().ok());
    const Status status = parts.cascade(32);
    ASSERT_TRUE(status.ok()) << status.to_string();
    EXPECT_LT(worst_difference(parts.output, whole.output), 2e-5) << backplane_name(runtime.backplane);
    EXPECT_LT(worst_difference(parts.lse, whole.lse), 2e-5) << backplane_name(runtime.backplane);
  }
}

TEST(Cascade, EqualsAttentionInOneGo) {
  expect_same_result([](SharedPrefixBatch&) {});
  expect_same_result([](SharedPrefixBatch& batch) {
    batch.args.variant.softcap = 2.0f;
    batch.args.variant.sinks = batch.sinks.data();
  });
}

TEST(Cascade, KeepsDistancesOfAlibi) {
  for (const AlibiKind kind : {AlibiKind::kLinear, AlibiKind::kDistance}) {
    expect_same_result([&](SharedPrefixBatch& batch) {
      batch.args.variant.alibi = kind;
      batch.args.variant.alibi_slopes = batch.slopes.data();
      batch.args.variant.sinks = batch.sinks.data();
    });
  }
}

TEST(Cascade, ShiftsMmPrefixRanges) {
  expect_same_result([](SharedPrefixBatch& batch) {
    batch.args.variant.mm_prefix_ranges = batch.ranges.data();
    batch.args.variant.mm_prefix_max_ranges = 1;
  });
}

TEST(Cascade, WindowsAndChunksThatHideNothingAreTaken) {
  expect_same_result([](SharedPrefixBatch& batch) {
    batch.args.variant.window_left = 69;
    batch.args.variant.chunk = 128;
  });
}

void expect_cascade_error(const Change& change, std::int32_t prefix_len, std::string_view text) {
  SharedPrefixBatch batch(test_runtimes().front());
  change(batch);
  const Status status = batch.cascade(prefix_len);
  EXPECT_FALSE(status.ok());
  EXPECT_NE(status.message().find(text), std::string::npos) << status.to_string();
}

TEST(Cascade, RefusesWhatItWouldGetWrong) {
  const auto as_is = [](SharedPrefixBatch&) {};
  expect_cascade_error(as_is, 20, "a positive multiple of block_size 16");
  expect_cascade_error(as_is, 0, "a positive multiple of block_size 16");
  expect_cascade_error(as_is, 48, "args.seq_lens[0]");
  expect_cascade_error([](SharedPrefixBatch& batch) { batch.args.variant.window_left = 60; }, 32, "window or chunk");
  expect_cascade_error([](SharedPrefixBatch& batch) { batch.args.variant.chunk = 64; }, 32, "window or chunk");
  expect_cascade_error([](SharedPrefixBatch& batch) { batch.table[6] = 4; }, 32, "args.kv.block_table[1][1]");
  expect_cascade_error(
      [](SharedPrefixBatch& batch) {
        batch.args.variant.alibi = AlibiKind::kSqrt;
        batch.args.variant.alibi_slopes = batch.slopes.data();
      },
      32, "square-root ALiBi");
}

using WrongArguments = std::vector<std::pair<std::string_view, Change>>;

// What is wrong with pointers and numbers, wherever the arrays are.
WrongArguments wrong_arguments() {
  return {
      {"args.query: want a pointer", [](SharedPrefixBatch& b) { b.args.query = nullptr; }},
      {"args.output: want an address aligned to 4",
       [](SharedPrefixBatch& b) { b.args.output = reinterpret_cast<std::byte*>(b.output.data()) + 1; }},
      {"args.query_dtype", [](SharedPrefixBatch& b) { b.args.query_dtype = DType::kInt8; }},
      {"args.output_dtype", [](SharedPrefixBatch& b) { b.args.output_scale = 1.0f; }},
      {"args.num_q_heads", [](SharedPrefixBatch& b) { b.args.num_q_heads = 3; }},
      {"args.query_start_loc: want a pointer", [](SharedPrefixBatch& b) { b.args.query_start_loc = nullptr; }},
      {"args.seq_lens: want a pointer", [](SharedPrefixBatch& b) { b.args.seq_lens = nullptr; }},
      {"args.kv.num_kv_heads", [](SharedPrefixBatch& b) { b.args.kv.num_kv_heads = 0; }},
      {"args.kv.block_size", [](SharedPrefixBatch& b) { b.args.kv.block_size = 0; }},
      {"args.kv.kv_start", [](SharedPrefixBatch& b) { b.args.kv.block_table = nullptr; }},
      {"args.kv.value: want a pointer", [](SharedPrefixBatch& b) { b.args.kv.value[0].data = nullptr; }},
      {"args.kv.key: want strides >= 0", [](SharedPrefixBatch& b) { b.args.kv.key[0].page_stride = -1; }},
      {"args.variant.softcap", [](SharedPrefixBatch& b) { b.args.variant.softcap = -1.0f; }},
      {"args.variant.alibi_slopes", [](SharedPrefixBatch& b) { b.args.variant.alibi = AlibiKind::kLinear; }},
  };
}

// What is wrong in arrays; those on a device are checked there.
WrongArguments wrong_arrays() {
  return {
      {"args.query_start_loc[2]", [](SharedPrefixBatch& b) { b.starts[2] = 0; }},
      {"args.query_start_loc[4]", [](SharedPrefixBatch& b) { b.args.num_tokens = 25; }},
      {"args.seq_lens[1]", [](SharedPrefixBatch& b) { b.seq_lens[1] = 81; }},
      {"args.seq_lens[0]", [](SharedPrefixBatch& b) { b.seq_lens[0] = -1; }},
      {"args.kv.block_table[1][4]: want 0 <= id < 24, got 24", [](SharedPrefixBatch& b) { b.table[9] = 24; }},
      {"args.kv.block_table[0][0]", [](SharedPrefixBatch& b) { b.table[0] = -1; }},
  };
}

void expect_named(const Runtime& runtime, const WrongArguments& cases) {
  for (const auto& [text, change] : cases) {
    SharedPrefixBatch batch(test_runtimes().front());
    const AttentionPlan plan = batch.plan();
    change(batch);
    const Status status = paged_attention(batch.args, plan, runtime, {});
    EXPECT_FALSE(status.ok()) << text;
    EXPECT_NE(status.message().find(text), std::string::npos) << text << " / " << status.to_string();
    for (const float value : batch.output) ASSERT_EQ(value, 99.0f) << text;
  }
}

TEST(PagedAttention, BadArgumentsAreNamed) {
  for (const Backplane backplane : {Backplane::kReference, Backplane::kCpu}) {
    expect_named({.backplane = backplane}, wrong_arguments());
    expect_named({.backplane = backplane}, wrong_arrays());
  }
  // Before anything is asked of a device.
  expect_named({.backplane = Backplane::kCuda}, wrong_arguments());
}

TEST(PagedAttention, PlansOfOtherBatchesAreRefused) {
  SharedPrefixBatch batch(default_runtime().value());
  for (const auto& change : std::vector<std::function<void(AttentionPlan&)>>{
           [](AttentionPlan& plan) { plan.items.front().seq = 4; },
           [](AttentionPlan& plan) { plan.items.front().token_begin = 30; },
           [](AttentionPlan& plan) { plan.items.front().kv_end = 71; },
           [](AttentionPlan& plan) { plan.items.front().kv_begin = 5; },
           [](AttentionPlan& plan) { plan.items.front().partial = 9; },
           [](AttentionPlan& plan) { plan.merges.push_back({.first_partial = 1, .num_partials = 1}); },
       }) {
    AttentionPlan plan = batch.plan();
    change(plan);
    const Status status = batch.attend(plan);
    EXPECT_FALSE(status.ok());
    EXPECT_NE(status.message().find("plan"), std::string::npos) << status.to_string();
  }
}

// Two states of two tokens and one head of width 3.
struct States {
  std::vector<float> prefix = {1, 2, 3, 4, 5, 6}, suffix = {7, 8, 9, 10, 11, 12}, output = std::vector<float>(6, 99.0f);
  std::vector<float> prefix_lse = {0.5f, -1.0f}, suffix_lse = {0.25f, 2.0f}, output_lse = std::vector<float>(2, 99.0f);

  MergeStatesArgs args() {
    const auto wide = [](std::vector<float>& from) {
      return make_tensor(from.data(), DType::kFloat32, {2, 1, 3}).value();
    };
    const auto thin = [](std::vector<float>& from) {
      return make_tensor(from.data(), DType::kFloat32, {1, 2}).value();
    };
    MergeStatesArgs out;
    out.prefix_output = wide(prefix);
    out.suffix_output = wide(suffix);
    out.output = wide(output);
    out.prefix_lse = thin(prefix_lse);
    out.suffix_lse = thin(suffix_lse);
    out.output_lse = thin(output_lse);
    return out;
  }
  Status merge() { return merge_attn_states(args(), test_runtimes().front()); }
};

TEST(MergeStates, WeighsByTheExponentials) {
  States states;
  ASSERT_TRUE(states.merge().ok());
  const double p = std::exp(0.5), s = std::exp(0.25);
  EXPECT_NEAR(states.output[1], (2 * p + 8 * s) / (p + s), 1e-6);
  EXPECT_NEAR(states.output_lse[0], std::log(p + s), 1e-6);
}

TEST(MergeStates, SidesWithoutKeysCountForNothing) {
  States states;
  states.prefix_lse = {-kInfinity, kInfinity};
  states.prefix = std::vector<float>(6, NAN);
  ASSERT_TRUE(states.merge().ok());
  EXPECT_EQ(states.output, states.suffix);
  EXPECT_EQ(states.output_lse, states.suffix_lse);
  states.suffix_lse = {-kInfinity, -kInfinity};
  ASSERT_TRUE(states.merge().ok());
  EXPECT_EQ(states.output, std::vector<float>(6, 0.0f));
  EXPECT_EQ(states.output_lse, std::vector<float>(2, -kInfinity));
}

TEST(MergeStates, LaterTokensTakeTheSuffix) {
  States states;
  MergeStatesArgs args = states.args();
  args.prefill_tokens_with_context = 1;
  ASSERT_TRUE(merge_attn_states(args, test_runtimes().front()).ok());
  EXPECT_NE(states.output[0], states.suffix[0]);
  EXPECT_EQ(states.output[3], states.suffix[3]);
  EXPECT_EQ(states.output_lse[1], states.suffix_lse[1]);
}

TEST(MergeStates, QuantisesWithOneScale) {
  States states;
  std::vector<std::uint8_t> codes(6);
  MergeStatesArgs args = states.args();
  ASSERT_TRUE(merge_attn_states(args, test_runtimes().front()).ok());
  args.output = make_tensor(codes.data(), DType::kFloat8E4M3, {2, 1, 3}).value();
  args.output_scale = 0.5f;
  ASSERT_TRUE(merge_attn_states(args, test_runtimes().front()).ok());
  for (std::size_t i = 0; i < codes.size(); ++i) EXPECT_EQ(codes[i], float_to_e4m3(states.output[i] * 2.0f)) << i;
}

TEST(MergeStates, BadTensorsAreNamed) {
  States states;
  MergeStatesArgs args = states.args();
  args.suffix_lse = make_tensor(states.suffix_lse.data(), DType::kFloat32, {2, 1}).value();
  Status status = merge_attn_states(args, test_runtimes().front());
  EXPECT_NE(status.message().find("suffix_lse"), std::string::npos) << status.to_string();
  args = states.args();
  args.output_scale = 1.0f;
  status = merge_attn_states(args, test_runtimes().front());
  EXPECT_NE(status.message().find("output"), std::string::npos) << status.to_string();
}

}  // namespace
}  // namespace quire::test
