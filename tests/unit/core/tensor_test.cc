// Tests of TensorView: construction, slicing, permuting, and what the checks say.
#include "quire/tensor.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

namespace quire {
namespace {

TensorView counted(std::vector<std::int32_t>& memory, std::initializer_list<std::int64_t> shape) {
  TensorView view = *make_tensor(memory.data(), DType::kInt32, shape);
  memory.resize(static_cast<std::size_t>(view.num_elements()));
  std::iota(memory.begin(), memory.end(), 0);
  view.data = memory.data();
  return view;
}

std::int32_t at(const TensorView& view, std::initializer_list<std::int64_t> index) {
  std::int64_t offset = 0;
  int dim = 0;
  for (std::int64_t i : index) offset += i * view.stride(dim++);
  return view.as<std::int32_t>()[offset];
}

TEST(TensorView, RowMajor) {
  std::vector<std::int32_t> memory;
  const TensorView view = counted(memory, {2, 3, 4});
  EXPECT_EQ(view.num_elements(), 24);
  EXPECT_EQ(view.extent_elements(), 24);
  EXPECT_TRUE(view.is_contiguous());
  EXPECT_EQ(at(view, {1, 2, 3}), 23);
  EXPECT_EQ(shape_string(view), "[2, 3, 4]");
  EXPECT_EQ(shape_string(TensorView{}), "none");
  EXPECT_TRUE(TensorView{}.empty());
}

TEST(TensorView, SelectSliceAndPermute) {
  std::vector<std::int32_t> memory;
  const TensorView view = counted(memory, {2, 3, 4});
  const TensorView column = select(view, 1, 2);
  EXPECT_EQ(shape_string(column), "[2, 4]");
  EXPECT_EQ(at(column, {1, 3}), 23);
  EXPECT_FALSE(column.is_contiguous());
  EXPECT_EQ(column.extent_elements(), 16);
  const TensorView part = slice(view, 2, 1, 3);
  EXPECT_EQ(shape_string(part), "[2, 3, 2]");
  EXPECT_EQ(at(part, {1, 1, 1}), 12 + 4 + 2);
  EXPECT_EQ(slice(view, 0, 1, 1).extent_elements(), 0);
  const TensorView turned = permute(view, {2, 0, 1});
  EXPECT_EQ(shape_string(turned), "[4, 2, 3]");
  EXPECT_EQ(at(turned, {3, 1, 2}), 23);
  EXPECT_TRUE(select(view, 0, 1).is_contiguous());
}

TEST(TensorView, WrongShapes) {
  EXPECT_NE(make_tensor(nullptr, DType::kInt8, {2, -1}).status().message().find("[2, "), std::string::npos);
  EXPECT_FALSE(make_tensor(nullptr, DType::kInt8, {std::int64_t{1} << 40, std::int64_t{1} << 40}).ok());
  EXPECT_FALSE(make_tensor(nullptr, DType::kInt8, {1, 1, 1, 1, 1, 1, 1, 1, 1}).ok());
  EXPECT_TRUE(make_tensor(nullptr, DType::kInt8, {0, 5}).ok());
}

template <class Change>
std::string complaint(Change change, bool contiguous = true) {
  alignas(8) static std::int32_t memory[24];
  TensorView view = *make_tensor(memory, DType::kInt32, {2, 3, 4});
  change(view);
  return check_tensor(view, {"rows", {DType::kInt32, DType::kInt64}, {kAny, 3, 4}, contiguous}).message();
}

TEST(CheckTensor, NamesWantedAndGot) {
  EXPECT_EQ(complaint([](TensorView&) {}), "");
  EXPECT_EQ(complaint([](TensorView& v) { v.rank = 2; }), "rows.shape: want [*, 3, 4], got rank 2");
  EXPECT_EQ(complaint([](TensorView& v) { v.rank = -1; }), "rows.shape: want [*, 3, 4], got rank -1");
  EXPECT_EQ(complaint([](TensorView& v) { v.dtype = DType::kInt8; }), "rows.dtype: want int32 or int64, got int8");
  EXPECT_EQ(complaint([](TensorView& v) { v.shape[1] = 5; }), "rows.shape: want [*, 3, 4], got [2, 5, 4]");
  EXPECT_EQ(complaint([](TensorView& v) { v.data = nullptr; }), "rows: want data, got a null pointer");
  EXPECT_NE(
      complaint([](TensorView& v) { v.data = v.as<char>() + 2; }).find("aligned to 4 bytes, got one that is off by 2"),
      std::string::npos);
  EXPECT_EQ(complaint([](TensorView& v) { v.strides[2] = 2; }), "rows.strides: want 1 in the last dimension, got 2");
  EXPECT_EQ(complaint([](TensorView& v) { v.strides[2] = 2; }, false), "");
  EXPECT_EQ(complaint([](TensorView& v) { v.strides[0] = -12; }), "rows.strides: want strides >= 0, got [-12, 4, 1]");
  EXPECT_NE(complaint([](TensorView& v) { v.strides[0] = INT64_MAX / 2; }).find("2^60"), std::string::npos);
  EXPECT_NE(complaint([](TensorView& v) { v.shape[0] = INT64_MAX; }).find("2^60"), std::string::npos);
  EXPECT_EQ(complaint([](TensorView& v) {
              v.shape[0] = 0;
              v.data = nullptr;
            }),
            "");
}

// Whether two indices reach one element, by trying all.
bool overlaps(const TensorView& view) {
  std::set<std::int64_t> seen;
  for (std::int64_t n = 0; n < view.num_elements(); ++n) {
    std::int64_t rest = n;
    std::int64_t offset = 0;
    for (int dim = 0; dim < view.rank; ++dim) {
      offset += rest % view.size(dim) * view.stride(dim);
      rest /= view.size(dim);
    }
    if (!seen.insert(offset).second) return true;
  }
  return false;
}

TEST(CheckNoOverlap, AcceptsOnlyViewsWithoutOverlap) {
  std::mt19937 random(3);
  int accepted = 0;
  for (int i = 0; i < 20000; ++i) {
    TensorView view{.data = &view, .rank = 3};
    for (std::size_t dim = 0; dim < 3; ++dim) {
      view.shape[dim] = 1 + static_cast<std::int64_t>(random() % 4);
      view.strides[dim] = static_cast<std::int64_t>(random() % 20);
    }
    const Status status = check_no_overlap("cache", view);
    if (!status.ok()) continue;
    ++accepted;
    ASSERT_FALSE(overlaps(view)) << shape_string(view);
  }
  EXPECT_GT(accepted, 1000);
}

TEST(CheckNoOverlap, AcceptsSlicedAndPermutedBuffers) {
  std::vector<std::int32_t> memory;
  const TensorView view = counted(memory, {3, 4, 5});
  EXPECT_TRUE(check_no_overlap("x", permute(slice(view, 1, 1, 3), {2, 0, 1})).ok());
  TensorView broadcast = view;
  broadcast.strides[1] = 0;
  EXPECT_NE(check_no_overlap("x", broadcast).message().find("x.strides: want elements that do not overlap"),
            std::string::npos);
}

TEST(Devices, Names) {
  EXPECT_EQ(device_name({}), "cpu");
  EXPECT_EQ(device_name({DeviceType::kCuda, 3}), "cuda:3");
}

}  // namespace
}  // namespace quire
