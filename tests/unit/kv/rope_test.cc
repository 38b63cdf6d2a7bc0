// Tests of rope_and_cache_flash: rotation against a formula in float64, and the store that follows.
#include <gtest/gtest.h>

#include <cmath>
#include <tuple>

#include "unit/kv/cache_model.h"

namespace quire {
namespace {

using kv_test::all_cases;
using kv_test::CacheCase;
using kv_test::CacheModel;
using kv_test::GuardedBuffer;
using kv_test::Rows;

constexpr std::int64_t kMaxPosition = 50;

// [kMaxPosition, rotary_dim] with a gap behind each row.
class CosSin {
 public:
  CosSin(DType dtype, std::int32_t rotary_dim)
      : dtype_(dtype),
        rotary_dim_(rotary_dim),
        buffer_(static_cast<std::size_t>(kMaxPosition * (rotary_dim + 3) * dtype_bytes(dtype))) {
    for (std::int64_t position = 0; position < kMaxPosition; ++position) {
      for (std::int32_t i = 0; i < rotary_dim / 2; ++i) {
        const double angle = static_cast<double>(position) * std::pow(100.0, -2.0 * i / rotary_dim);
        store_from_float(buffer_.data(), dtype, index(position, i), static_cast<float>(std::cos(angle)));
        store_from_float(buffer_.data(), dtype, index(position, i + rotary_dim / 2),
                         static_cast<float>(std::sin(angle)));
      }
    }
  }
  TensorView view() {
    TensorView view{.data = buffer_.data(), .dtype = dtype_, .rank = 2};
    view.shape = {kMaxPosition, rotary_dim_};
    view.strides = {rotary_dim_ + 3, 1};
    return view;
  }
  double cosine(std::int64_t position, std::int64_t pair) {
    return load_as_float(buffer_.data(), dtype_, index(position, pair));
  }
  double sine(std::int64_t position, std::int64_t pair) {
    return load_as_float(buffer_.data(), dtype_, index(position, pair + rotary_dim_ / 2));
  }

 private:
  std::int64_t index(std::int64_t position, std::int64_t d) const { return position * (rotary_dim_ + 3) + d; }
  DType dtype_;
  std::int32_t rotary_dim_;
  GuardedBuffer buffer_;
};

// Two products of elements below 16 in magnitude are rounded to float32 before they are added.
constexpr double kProducts = 2 * 16 * 0x1p-24;

double tolerance(DType dtype) {
  if (dtype == DType::kFloat32) return 0x1p-24;
  return dtype == DType::kFloat16 ? 0x1p-11 : 0x1p-8;
}

// What element d of a rotated row should be, from the row before.
double rotated(Rows& before, std::int64_t token, std::int64_t head, std::int64_t d, RopeStyle style, CosSin& angles,
               std::int32_t rotary_dim, std::int64_t position) {
  const std::int64_t half = rotary_dim / 2;
  if (d >= rotary_dim) return before.get(token, head, d);
  const bool neox = style == RopeStyle::kNeox;
  const std::int64_t pair = neox ? d % half : d / 2;
  const bool first = neox ? d < half : d % 2 == 0;
  const double x = before.get(token, head, neox ? pair : 2 * pair);
  const double y = before.get(token, head, neox ? pair + half : 2 * pair + 1);
  return first ? x * angles.cosine(position, pair) - y * angles.sine(position, pair)
               : y * angles.cosine(position, pair) + x * angles.sine(position, pair);
}

class RopeTest : public testing::TestWithParam<std::tuple<DType, RopeStyle, std::int32_t>> {};

TEST_P(RopeTest, RotatesInPlaceWhereItShould) {
  const DType dtype = std::get<0>(GetParam());  // named one by one: clang 14 captures no structured binding
  const RopeStyle style = std::get<1>(GetParam());
  const std::int32_t rotary_dim = std::get<2>(GetParam());
  std::mt19937 random(4);
  for (DType angle_dtype : {DType::kFloat32, dtype}) {
    CacheModel model({.spec = {.model_dtype = dtype, .num_blocks = 4, .num_kv_heads = 2, .head_size = 300}});
    CosSin angles(angle_dtype, rotary_dim);
    Rows key(dtype, 6, 2, 300), value(dtype, 6, 2, 300), query(dtype, 5, 3, 300);
    for (Rows* rows : {&key, &value, &query}) rows->fill(random);
    Rows key_before = key, value_before = value, query_before = query;
    std::vector<std::int32_t> positions{0, 49, 7, 31};  // row 4 of query and rows 4, 5 of key have none
    std::vector<std::int64_t> slots{9, -1, 63, 0, 17};
    const RopeArgs rope{.query = query.view(),
                        .positions = *make_tensor(positions.data(), DType::kInt32, {4}),
                        .cos_sin_cache = angles.view(),
                        .style = style};
    const Status status = rope_and_cache_flash(rope, key.view(), value.view(), *model.bind(),
                                               *make_tensor(slots.data(), DType::kInt64, {5}));
    ASSERT_TRUE(status.ok()) << status.to_string();
    const auto expect_rows = [&](Rows& after, Rows& before, std::int64_t tokens, std::int64_t heads, auto is_rotated) {
      for (std::int64_t token = 0; token < tokens; ++token) {
        for (std::int64_t head = 0; head < heads; ++head) {
          for (std::int64_t d = 0; d < 300; ++d) {
            const double want = is_rotated(token) ? rotated(before, token, head, d, style, angles, rotary_dim,
                                                            positions[static_cast<std::size_t>(token)])
                                                  : before.get(token, head, d);
            ASSERT_NEAR(after.get(token, head, d), want, tolerance(dtype) * std::fabs(want) + kProducts)
                << token << " " << head << " " << d;
          }
        }
      }
    };
    expect_rows(query, query_before, 5, 3, [](std::int64_t token) { return token < 4; });
    expect_rows(key, key_before, 6, 2,
                [&](std::int64_t token) { return token < 4 && slots[static_cast<std::size_t>(token)] >= 0; });
    EXPECT_EQ(value.buffer().bytes(), value_before.buffer().bytes());
    EXPECT_TRUE(query.buffer().guards_intact() && key.buffer().guards_intact() && model.guards_intact());
  }
}

INSTANTIATE_TEST_SUITE_P(All, RopeTest,
                         testing::Combine(testing::Values(DType::kFloat32, DType::kFloat16, DType::kBFloat16),
                                          testing::Values(RopeStyle::kNeox, RopeStyle::kGptj),
                                          testing::Values(2, 34, 300)));

TEST(Rope, StoresWhatRotatingFirstWouldStore) {
  std::mt19937 random(5);
  for (const CacheCase& test : all_cases(DType::kBFloat16)) {
    SCOPED_TRACE(test.name());
    CacheModel fused(test);
    CacheModel two_steps(test);
    CosSin angles(DType::kFloat32, 16);
    Rows key(DType::kBFloat16, 3, 4, fused.size_of(0)), value(DType::kBFloat16, 3, 4, fused.size_of(1));
    key.fill(random);
    value.fill(random);
    std::vector<std::int64_t> positions{3, 20};
    std::vector<std::int64_t> slots{14, 2, 8};
    const TensorView slot_view = *make_tensor(slots.data(), DType::kInt64, {3});
    const RopeArgs rope{.positions = *make_tensor(positions.data(), DType::kInt64, {2}),
                        .cos_sin_cache = angles.view()};
    ASSERT_TRUE(rope_and_cache_flash(rope, key.view(), value.view(), *fused.bind(2.0f, 3.0f), slot_view).ok());
    ASSERT_TRUE(reshape_and_cache_flash(key.view(), value.view(), *two_steps.bind(2.0f, 3.0f), slot_view).ok());
    EXPECT_EQ(fused.cache().bytes(), two_steps.cache().bytes());
    EXPECT_EQ(fused.scales(0).bytes(), two_steps.scales(0).bytes());
  }
}

TEST(Rope, WrongArgumentsChangeNothing) {
  CacheModel model({.spec = {.num_blocks = 4, .num_kv_heads = 2, .head_size = 8}});
  const KVSource cache = *model.bind();
  CosSin angles(DType::kFloat32, 8), odd(DType::kFloat32, 7), wide(DType::kFloat32, 10), f16(DType::kFloat16, 8);
  Rows key(DType::kBFloat16, 2, 2, 8), value(DType::kBFloat16, 2, 2, 8), query(DType::kBFloat16, 2, 2, 8);
  std::vector<std::int64_t> positions{1, 2}, late{1, 50}, early{-1, 2}, slots{0, 1}, far{0, 64};
  const auto list = [](std::vector<std::int64_t>& values) { return *make_tensor(values.data(), DType::kInt64, {2}); };
  const auto message = [&](const RopeArgs& rope, std::vector<std::int64_t>& where) {
    return rope_and_cache_flash(rope, key.view(), value.view(), cache, list(where)).message();
  };
  const auto key_before = key.buffer().bytes();
  const auto query_before = query.buffer().bytes();
  const auto cache_before = model.cache().bytes();
  const RopeArgs good{.query = query.view(), .positions = list(positions), .cos_sin_cache = angles.view()};
  const auto with = [&](auto change) {
    RopeArgs rope = good;
    change(rope);
    return message(rope, slots);
  };
  EXPECT_EQ(with([&](RopeArgs& r) { r.positions = list(late); }), "rope.positions[1]: want [0, 50), got 50");
  EXPECT_EQ(with([&](RopeArgs& r) { r.positions = list(early); }), "rope.positions[0]: want [0, 50), got -1");
  EXPECT_NE(with([&](RopeArgs& r) { r.cos_sin_cache = odd.view(); }).find("even rotary_dim in [2, 8], got 7"),
            std::string::npos);
  EXPECT_NE(with([&](RopeArgs& r) { r.cos_sin_cache = wide.view(); }).find("got 10"), std::string::npos);
  EXPECT_NE(with([&](RopeArgs& r) { r.cos_sin_cache = f16.view(); }).find("rope.cos_sin_cache.dtype"),
            std::string::npos);
  EXPECT_NE(with([&](RopeArgs& r) { r.query = slice(r.query, 0, 0, 1); }).find("rope.query.shape"), std::string::npos);
  EXPECT_NE(with([&](RopeArgs& r) { r.query.strides[1] = 0; }).find("overlap"), std::string::npos);
  EXPECT_NE(with([&](RopeArgs& r) { r.query.dtype = DType::kFloat16; }).find("rope.query.dtype"), std::string::npos);
  EXPECT_NE(with([&](RopeArgs& r) { r.positions = {}; }).find("rope.positions"), std::string::npos);
  EXPECT_NE(message(good, far).find("slot_mapping[1]: want a slot below 64"), std::string::npos);
  EXPECT_EQ(key.buffer().bytes(), key_before);
  EXPECT_EQ(query.buffer().bytes(), query_before);
  EXPECT_EQ(model.cache().bytes(), cache_before);
}

}  // namespace
}  // namespace quire
