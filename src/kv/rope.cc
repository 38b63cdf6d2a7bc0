// Rotary embedding of one token's rows, in place.
#include "kv/rope.h"

#include <algorithm>
#include <array>

#include "kv/codec/element.h"

namespace quire {
namespace {

// Pairs whose cosines and sines are widened at a time, for all heads of the token.
constexpr std::int32_t kPairs = 128;

struct Angles {
  std::array<float, kPairs> cosines;
  std::array<float, kPairs> sines;
};

// Pairs [begin, begin + count) of one head: element i with i + rotary_dim / 2.
template <class Element>
void rotate_neox(typename Element::Code* row, std::int32_t half, std::int32_t count, const Angles& angles) {
  typename Element::Code* __restrict low = row;
  typename Element::Code* __restrict high = row + half;
  for (std::int32_t i = 0; i < count; ++i) {
    const float x = Element::decode(low[i]);
    const float y = Element::decode(high[i]);
    const float cosine = angles.cosines[static_cast<std::size_t>(i)];
    const float sine = angles.sines[static_cast<std::size_t>(i)];
    low[i] = Element::encode(x * cosine - y * sine);
    high[i] = Element::encode(y * cosine + x * sine);
  }
}

// The same pairs as elements 2i and 2i + 1.
template <class Element>
void rotate_gptj(typename Element::Code* row, std::int32_t count, const Angles& angles) {
  for (std::int32_t i = 0; i < count; ++i) {
    const float x = Element::decode(row[2 * i]);
    const float y = Element::decode(row[2 * i + 1]);
    const float cosine = angles.cosines[static_cast<std::size_t>(i)];
    const float sine = angles.sines[static_cast<std::size_t>(i)];
    row[2 * i] = Element::encode(x * cosine - y * sine);
    row[2 * i + 1] = Element::encode(y * cosine + x * sine);
  }
}

template <class Element>
void rotate_heads(const RopeStoreArgs& rope, const TokenRows& rows, std::int64_t token, std::int64_t position) {
  using Code = typename Element::Code;
  const std::int32_t half = rope.rotary_dim / 2;
  const std::int64_t cosines = position * rope.cos_sin_stride;
  Code* const first = static_cast<Code*>(rows.data) + token * rows.token_stride;
  Angles angles;
  for (std::int32_t begin = 0; begin < half; begin += kPairs) {
    const std::int32_t count = std::min(kPairs, half - begin);
    for (std::int32_t i = 0; i < count; ++i) {
      const auto place = static_cast<std::size_t>(i);
      angles.cosines[place] = load_as_float(rope.cos_sin, rope.cos_sin_dtype, cosines + begin + i);
      angles.sines[place] = load_as_float(rope.cos_sin, rope.cos_sin_dtype, cosines + half + begin + i);
    }
    for (std::int32_t head = 0; head < rows.num_heads; ++head) {
      Code* const row = first + head * rows.head_stride;
      if (rope.style == RopeStyle::kNeox) {
        rotate_neox<Element>(row + begin, half, count, angles);
      } else {
        rotate_gptj<Element>(row + 2 * begin, count, angles);
      }
    }
  }
}

}  // namespace

void rotate_token(const RopeStoreArgs& rope, const TokenRows& rows, DType dtype, std::int64_t token) {
  const std::int64_t position = rope.wide_positions ? static_cast<const std::int64_t*>(rope.positions)[token]
                                                    : static_cast<const std::int32_t*>(rope.positions)[token];
  switch (dtype) {
    case DType::kFloat16:
      return rotate_heads<Float16Element>(rope, rows, token, position);
    case DType::kBFloat16:
      return rotate_heads<BFloat16Element>(rope, rows, token, position);
    default:
      return rotate_heads<Float32Element>(rope, rows, token, position);
  }
}

}  // namespace quire
