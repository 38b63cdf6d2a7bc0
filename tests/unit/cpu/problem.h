// Random attention problems that own their memory: a paged or contiguous cache with poison in every byte that no query
// may see, and how to run them on an ISA.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "core/convert.h"
#include "cpu/attention.h"
#include "quire/plan.h"
#include "reference/attention.h"

namespace quire::cpu::test {

struct Shape {
  std::vector<std::pair<std::int32_t, std::int32_t>> seqs{{1, 37}, {5, 70}, {33, 33}};  // query_len, seq_len
  std::int32_t q_heads = 4;
  std::int32_t kv_heads = 2;
  std::int32_t head_size = 32;
  std::int32_t head_size_v = 32;
  std::int32_t streams = 1;
  std::int32_t block_size = 16;  // 0: contiguous
  bool heads_first = false;      // HND instead of NHD
  DType query = DType::kBFloat16;
  DType kv = DType::kBFloat16;
  DType output = DType::kFloat32;
  bool row_scales = false;
  float key_scale = 1.0f;
  float value_scale = 1.0f;
  float query_scale = 1.0f;
  float output_scale = 0.0f;
  bool block_scales = false;
  Variant variant{};
  DifferentialCombine differential{};
  unsigned seed = 1;
};

inline std::vector<std::byte> poison(std::int64_t elements, DType dtype) {
  // All ones is a NaN in every float format here, and -1 in int8.
  return std::vector<std::byte>(static_cast<std::size_t>(elements * dtype_bytes(dtype)), std::byte{0xff});
}

class Problem {
 public:
  explicit Problem(const Shape& wanted) : shape(wanted), random_(wanted.seed) {
    fill_lengths();
    fill_queries();
    fill_cache();
    args.variant = shape.variant;
    if (args.variant.scale == 1.0f) args.variant.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_size));
    args.differential = shape.differential;
    allocate_output();
  }
  Problem(const Problem&) = delete;
  Problem& operator=(const Problem&) = delete;

  Shape shape;
  AttentionArgs args;
  std::vector<std::int32_t> starts, lens, table, kv_start;
  std::vector<std::byte> query, output, key[2], value[2];
  std::vector<float> key_scales[2], value_scales[2], block_scales, lse;

  PlanConfig plan_config() const {
    return {.rows_per_token = shape.q_heads / shape.kv_heads, .tile_rows = 64, .split_rows = 32};
  }
  AttentionPlan plan(const PlanConfig& config) const { return make_attention_plan(config, starts, lens, args.variant); }

  // Runs the kernels between guard bytes and checks that those stay.
  void run(Isa isa, int threads = 2) { run_plan(isa, threads, plan(plan_config())); }
  void run_plan(Isa isa, int threads, const AttentionPlan& made) {
    constexpr std::size_t kGuard = 128;
    const Runtime runtime{.isa = isa, .num_threads = threads};
    const std::size_t bytes = attention_workspace_bytes(args, made, runtime);
    std::vector<std::byte> memory(bytes + 2 * kGuard,
                                  std::byte{0xff});  // NaN: no kernel may read what it did not write
    const Status status = attention(args, made, runtime, {memory.data() + kGuard, bytes});
    ASSERT_TRUE(status.ok()) << status.to_string();
    for (std::size_t i = 0; i < kGuard; ++i) {
      ASSERT_EQ(memory[i], std::byte{0xff});
      ASSERT_EQ(memory[kGuard + bytes + i], std::byte{0xff});
    }
  }

  std::int64_t width() const { return static_cast<std::int64_t>(shape.q_heads) * shape.head_size_v; }
  std::vector<double> outputs() const {
    std::vector<double> out(static_cast<std::size_t>(args.num_tokens * width()));
    for (std::int64_t i = 0; i < args.num_tokens * width(); ++i) {
      double& x = out[static_cast<std::size_t>(i)];
      x = load_as_float(output.data(), shape.output, i);
      if (shape.output_scale > 0) x *= shape.output_scale;
      if (shape.block_scales) x *= block_scales[static_cast<std::size_t>(i / width() * groups() + i % width() / 128)];
    }
    return out;
  }
  std::int64_t groups() const { return (width() + 127) / 128; }

  // Worst of |output - reference| in units of the largest value's magnitude, and the same of lse absolutely.
  void expect_close(double out_bound, double lse_bound) const {
    std::vector<double> want(static_cast<std::size_t>(args.num_tokens * width()));
    std::vector<double> want_lse(static_cast<std::size_t>(shape.q_heads * args.num_tokens));
    reference::attention_double(args, want.data(), want_lse.data());
    const std::vector<double> got = outputs();
    double largest = 1e-6;
    for (double x : want) largest = std::max(largest, std::abs(x));
    for (std::size_t i = 0; i < want.size(); ++i) {
      ASSERT_LE(std::abs(got[i] - want[i]), out_bound * largest)
          << "element " << i << ": got " << got[i] << ", want " << want[i];
    }
    for (std::size_t i = 0; i < want_lse.size(); ++i) {
      if (std::isinf(want_lse[i])) {
        ASSERT_EQ(lse[i], want_lse[i]) << i;
      } else {
        ASSERT_NEAR(lse[i], want_lse[i], lse_bound) << i;
      }
    }
  }

 private:
  std::mt19937 random_;

  float draw() { return std::uniform_real_distribution<float>(-1.0f, 1.0f)(random_); }
  void put(void* to, DType dtype, std::int64_t at) {
    const float x = draw();
    store_from_float(to, dtype, at, dtype == DType::kInt8 ? x * 127.0f : x * 2.0f);
  }

  void fill_lengths() {
    starts = {0};
    for (const auto& [query_len, seq_len] : shape.seqs) {
      starts.push_back(starts.back() + query_len);
      lens.push_back(seq_len);
    }
    args.num_seqs = static_cast<std::int32_t>(lens.size());
    args.num_tokens = starts.back();
    args.num_q_heads = shape.q_heads;
    args.query_start_loc = starts.data();
    args.seq_lens = lens.data();
  }

  void fill_queries() {
    const std::int64_t size = shape.head_size;
    args.query_dtype = shape.query;
    args.query_scale = shape.query_scale;
    args.query_head_stride = size;
    args.query_token_stride = shape.q_heads * size + 3;
    query = poison((args.num_tokens + 1) * args.query_token_stride, shape.query);
    for (std::int64_t token = 0; token < args.num_tokens; ++token) {
      for (std::int64_t i = 0; i < shape.q_heads * size; ++i) {
        put(query.data(), shape.query, token * args.query_token_stride + i);
      }
    }
    args.query = query.data();
  }

  KVRows make_rows(std::vector<std::byte>& data, std::vector<float>& scales, std::int64_t places, std::int64_t size) {
    KVRows rows;
    const std::int64_t block = std::max(shape.block_size, 1);
    rows.head_stride = shape.heads_first ? block * (size + 1) : size;
    rows.token_stride = shape.heads_first ? size + 1 : shape.kv_heads * size + 1;
    rows.page_stride = block * shape.kv_heads * (size + 1);
    data = poison(places * shape.kv_heads * (size + 1) + 64, shape.kv);
    rows.data = data.data();
    if (shape.row_scales) {
      scales.assign(static_cast<std::size_t>(places * shape.kv_heads), std::nanf(""));
      rows.scales = scales.data();
      rows.scale_page_stride = block * shape.kv_heads;
      rows.scale_token_stride = shape.kv_heads;
      rows.scale_head_stride = 1;
    }
    return rows;
  }

  void fill_row(const KVRows& rows, std::int64_t page, std::int64_t token, std::int64_t size) {
    for (std::int64_t head = 0; head < shape.kv_heads; ++head) {
      const std::int64_t at = page * rows.page_stride + token * rows.token_stride + head * rows.head_stride;
      for (std::int64_t d = 0; d < size; ++d) put(rows.data, shape.kv, at + d);
      if (rows.scales != nullptr) {
        rows.scales[page * rows.scale_page_stride + token * rows.scale_token_stride + head] =
            (draw() + 1.5f) / (shape.kv == DType::kInt8 ? 127.0f : 1.0f);
      }
    }
  }

  void fill_cache() {
    KVSource& kv = args.kv;
    kv.dtype = shape.kv;
    kv.num_streams = shape.streams;
    kv.num_kv_heads = shape.kv_heads;
    kv.head_size = shape.head_size;
    kv.head_size_v = shape.head_size_v;
    const std::int32_t block = std::max(shape.block_size, 1);
    std::int32_t longest = 1;
    for (std::int32_t len : lens) longest = std::max(longest, len);
    const std::int32_t columns = (longest + block - 1) / block;
    const std::int32_t blocks = columns * args.num_seqs + 1;
    for (int s = 0; s < shape.streams; ++s) {
      kv.key[s] = make_rows(key[s], key_scales[s], static_cast<std::int64_t>(blocks) * block, shape.head_size);
      kv.value[s] = make_rows(value[s], value_scales[s], static_cast<std::int64_t>(blocks) * block, shape.head_size_v);
      kv.key[s].tensor_scale = shape.key_scale;
      kv.value[s].tensor_scale = shape.value_scale * (s == 0 ? 1.0f : 0.5f);
    }
    table.resize(static_cast<std::size_t>(columns) * static_cast<std::size_t>(args.num_seqs));
    std::iota(table.begin(), table.end(), 1);
    std::shuffle(table.begin(), table.end(), random_);
    kv.num_blocks = blocks;
    kv.block_size = block;
    if (shape.block_size > 0) {
      kv.block_table = table.data();
      kv.block_table_stride = columns;
    } else {
      for (std::int32_t i = 0; i < args.num_seqs; ++i) kv_start.push_back(i * columns);
      kv.kv_start = kv_start.data();
    }
    for (std::int32_t seq = 0; seq < args.num_seqs; ++seq) {
      for (std::int32_t pos = 0; pos < lens[static_cast<std::size_t>(seq)]; ++pos) {
        const bool paged = shape.block_size > 0;
        const std::int64_t page = paged ? table[static_cast<std::size_t>(seq * columns + pos / block)] : 0;
        const std::int64_t token = paged ? pos % block : seq * columns + pos;
        for (int s = 0; s < shape.streams; ++s) {
          fill_row(kv.key[s], page, token, shape.head_size);
          fill_row(kv.value[s], page, token, shape.head_size_v);
        }
      }
    }
  }

  void allocate_output() {
    output = poison(args.num_tokens * width(), shape.output);
    args.output = output.data();
    args.output_dtype = shape.output;
    args.output_head_stride = shape.head_size_v;
    args.output_token_stride = width();
    args.output_scale = shape.output_scale;
    if (shape.block_scales) {
      block_scales.assign(static_cast<std::size_t>(args.num_tokens * groups()), -1.0f);
      args.output_block_scale = block_scales.data();
      args.output_block_scale_stride = groups();
    }
    lse.assign(static_cast<std::size_t>(shape.q_heads * args.num_tokens), -1.0f);
    args.lse = lse.data();
    args.lse_head_stride = args.num_tokens;
  }
};

// The tests of this folder run once an ISA.
class EachIsa : public ::testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    const std::vector<Isa> have = available_isas();
    if (std::find(have.begin(), have.end(), GetParam()) == have.end()) {
      GTEST_SKIP() << "this processor has no " << isa_name(GetParam());
    }
  }
};

inline std::string isa_test_name(const ::testing::TestParamInfo<Isa>& info) {
  return std::string(isa_name(info.param));
}

}  // namespace quire::cpu::test
