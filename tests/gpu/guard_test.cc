// Hostile metadata on the device, bits that do not depend on the batch, and replays of a captured launch's arguments.
#include <gtest/gtest.h>

#include <string>

#include "cuda/attention.h"
#include "cuda/tuning.h"
#include "gpu/device_case.h"

namespace quire::testing {
namespace {

class GpuGuard : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string missing = missing_device(); !missing.empty()) GTEST_SKIP() << missing;
  }

  static CaseShape shape_of(std::int32_t head_size, std::int32_t query_len) {
    CaseShape shape;
    shape.seed = 11;
    shape.dtype = shape.output_dtype = DType::kBFloat16;
    shape.num_kv_heads = 2;
    shape.group_size = 4;
    shape.head_size = shape.head_size_v = head_size;
    shape.requests = {{.content = 1, .query_len = query_len, .seq_len = 300, .tree_parents = {}},
                      {.content = 2, .query_len = query_len, .seq_len = 777, .tree_parents = {}}};
    return shape;
  }

  // The same for differential attention.
  static CaseShape pair_shape(std::int32_t query_len) {
    CaseShape shape = shape_of(64, query_len);
    shape.format = KVCacheFormat::kDifferential;
    return shape;
  }

  // The same for the wide decode kernel, if the plan is for kWideKeys keys.
  static CaseShape wide_shape() {
    CaseShape shape = shape_of(128, 1);
    shape.cache_dtype = KVCacheDType::kInt8PerTokenHead;
    shape.num_kv_heads = 8;
    return shape;
  }

  // Overwrites int32 `index` of a device array.
  static void poke(const std::int32_t* array, std::int64_t index, std::int32_t value) {
    auto* at = const_cast<std::int32_t*>(array) + index;
    ASSERT_TRUE(cuda::copy_to_device(at, &value, sizeof(value), nullptr).ok());
    ASSERT_TRUE(cuda::synchronize(nullptr).ok());
  }
};

// Head size 128 runs the decode kernel (one row) and the tile kernel (40 rows, pairs too), 72 the plain one; the last
// shape runs the wide decode kernel.
TEST_F(GpuGuard, BadMetadataIsNamedAndNothingOutsideIsTouched) {
  for (const CaseShape& shape :
       {shape_of(128, 1), shape_of(128, 40), shape_of(72, 1), shape_of(72, 40), pair_shape(40), wide_shape()}) {
    for (const int what : {0, 1, 2, 3}) {
      AttentionCase c(shape);
      DeviceCase device(c, is_quantized(shape.cache_dtype) ? cuda::kWideKeys : 0);
      std::string want;
      if (what == 0) {
        poke(device.args().kv.block_table, device.args().kv.block_table_stride + 3, 1 << 30);
        want = "block_table[1]";
      } else if (what == 1) {
        poke(device.args().kv.block_table, 2, -5);
        want = "block_table[0]";
      } else if (what == 2) {
        poke(device.args().seq_lens, 1, 1 << 29);
        want = "seq_lens[1]";
      } else {
        poke(device.args().query_start_loc, 2, 1 << 20);
        want = "query_start_loc[1]";
      }
      const Status status = device.run({.backplane = Backplane::kCuda});
      EXPECT_EQ(status.code(), StatusCode::kOutOfRange) << want;
      EXPECT_NE(status.message().find(want), std::string::npos) << status.message();
      EXPECT_TRUE(device.are_guards_intact()) << want << " " << describe(shape);
      EXPECT_TRUE(cuda::check(nullptr).ok());
    }
  }
}

TEST_F(GpuGuard, AnEarlierFaultIsReportedByTheNextCall) {
  AttentionCase c(shape_of(128, 1));
  DeviceCase device(c);
  poke(device.args().kv.block_table, 0, -1);
  ASSERT_TRUE(device.launch({.backplane = Backplane::kCuda}).ok());
  ASSERT_TRUE(cuda::synchronize(nullptr).ok());
  EXPECT_EQ(device.launch({.backplane = Backplane::kCuda}).code(), StatusCode::kOutOfRange);
  ASSERT_TRUE(cuda::synchronize(nullptr).ok());
}

// With fixed splits a request has the same bits alone and in a batch; with any splits a second run has the same bits.
TEST_F(GpuGuard, RowsHaveTheSameBitsInAnyBatch) {
  for (CaseShape both : {shape_of(128, 1), shape_of(128, 7), shape_of(128, 50), pair_shape(50)}) {
    const std::int32_t query_len = both.requests[0].query_len;
    both.requests[1].seq_len = 5000;
    CaseShape alone = both;
    alone.requests = {both.requests[1]};
    AttentionCase first(both), again(both), single(alone);
    for (AttentionCase* c : {&first, &again, &single}) {
      DeviceCase device(*c);
      ASSERT_TRUE(device.run({.backplane = Backplane::kCuda, .splits = KVSplits::kFixed}).ok());
    }
    for (std::int32_t row = 0; row < query_len; ++row) {
      EXPECT_EQ(first.row_bits(query_len + row), again.row_bits(query_len + row));
      EXPECT_EQ(first.row_bits(query_len + row), single.row_bits(row));
    }
  }
}

TEST_F(GpuGuard, WideDecodeHasTheSameBitsInASecondRun) {
  AttentionCase first(wide_shape()), again(wide_shape());
  for (AttentionCase* c : {&first, &again}) {
    DeviceCase device(*c, cuda::kWideKeys);
    ASSERT_TRUE(device.run({.backplane = Backplane::kCuda}).ok());
  }
  for (std::int32_t row = 0; row < 2; ++row) EXPECT_EQ(first.row_bits(row), again.row_bits(row));
}

// So many parts that a block of the combine kernel folds those of several kv heads.
TEST_F(GpuGuard, WideDecodeFoldsManyRequests) {
  CaseShape shape = wide_shape();
  shape.requests.clear();
  for (std::int32_t i = 0; i < 40; ++i) {
    shape.requests.push_back({.content = i + 1, .query_len = 1, .seq_len = 1 + i * 97 % 500, .tree_parents = {}});
  }
  AttentionCase c(shape);
  DeviceCase device(c, cuda::kWideKeys);
  ASSERT_TRUE(device.run({.backplane = Backplane::kCuda}).ok());
  const Comparison result = compare_tensor_cores_with_reference(c);
  EXPECT_TRUE(result.ok()) << result.worst_ratio << " " << result.nmse << " " << result.worst_lse;
}

// A launch planned for long requests gives the right rows after the lengths on the device have become shorter.
TEST_F(GpuGuard, ChangedLengthsAreReadFromTheDevice) {
  for (const CaseShape& shape : {shape_of(128, 1), shape_of(128, 40), pair_shape(40)}) {
    AttentionCase c(shape);
    DeviceCase device(c);
    c.seq_lens()[1] = 501;
    poke(device.args().seq_lens, 1, 501);
    ASSERT_TRUE(device.run({.backplane = Backplane::kCuda}).ok());
    const Comparison result = compare_tensor_cores_with_reference(c);
    EXPECT_TRUE(result.ok()) << result.worst_ratio << " " << result.nmse << " " << result.worst_lse;
  }
}

}  // namespace
}  // namespace quire::testing
