// Tests of the list of codecs: every code survives being read and written, and every cache dtype has one codec.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "kv/codec/list.h"
#include "quire/kv_cache.h"

namespace quire {
namespace {

// Calls f(Codec{}) for all of them.
template <class... Codecs, class Function>
void for_each_codec(CodecTypes<Codecs...>, Function&& f) {
  (f(Codecs{}), ...);
}

template <class Codec>
Codec with_factor(float factor) {
  if constexpr (Codec::kScale == ScaleKind::kTensor) return {factor};
  if constexpr (Codec::kScale == ScaleKind::kRow) return Codec::of_scale(factor);
  return {};
}

// With a power of two as the scale nothing is rounded on the way.
TEST(Codecs, EveryCodeSurvivesTheRoundTrip) {
  for_each_codec(CodecList{}, [](auto codec) {
    using Codec = decltype(codec);
    using Code = typename Codec::Code;
    const float factor = Codec::kScale == ScaleKind::kNone ? 1.0f : 0.125f;
    for (std::uint32_t bits = 0; bits < (sizeof(Code) == 1 ? 256u : 65536u); ++bits) {
      Code code{};
      const std::uint32_t shifted = sizeof(Code) == 4 ? bits << 16 : bits;
      std::memcpy(&code, &shifted, sizeof code);
      const float value = Codec::decode(code, factor);
      if (!std::isfinite(value)) continue;
      const Code again = with_factor<Codec>(factor).encode(value);
      ASSERT_EQ(std::memcmp(&again, &code, sizeof code), 0) << dtype_name(Codec::Element::kDType) << " " << bits;
    }
  });
}

TEST(Codecs, EveryCacheDTypeHasExactlyOne) {
  for (KVCacheDType cache_dtype : all_kv_cache_dtypes()) {
    for (DType model_dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      const DType dtype = kv_storage_dtype(cache_dtype, model_dtype);
      int count = 0;
      for_each_codec(CodecList{}, [&](auto codec) {
        count += codec_stores<decltype(codec)>(dtype, is_per_token_head(cache_dtype)) ? 1 : 0;
      });
      EXPECT_EQ(count, 1) << kv_cache_dtype_name(cache_dtype);
    }
  }
  EXPECT_FALSE(visit_codec(DType::kInt8, false, [](auto) {}));
  EXPECT_FALSE(visit_codec(DType::kBFloat16, true, [](auto) {}));
}

TEST(Codecs, RowScales) {
  using Int8 = RowScaleCodec<Int8Element>;
  EXPECT_EQ(Int8::scale_of(0.0f), 1e-6f);
  EXPECT_EQ(Int8::scale_of(1e-5f), 1e-6f);
  EXPECT_NEAR(Int8::scale_of(254.0f), 2.0f, 1e-6f);
  EXPECT_NEAR(RowScaleCodec<E4M3Element>::scale_of(224.0f), 0.5f, 1e-7f);
  // The largest element of a row is stored as the largest code.
  const float scale = Int8::scale_of(3.3f);
  EXPECT_EQ(Int8::of_scale(scale).encode(3.3f), 127);
  EXPECT_EQ(Int8::of_scale(scale).encode(-3.3f), -127);
}

}  // namespace
}  // namespace quire
