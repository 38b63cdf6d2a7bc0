// Codecs: an element with the scale that gives it a meaning - none, one for the tensor, or one for each row.
#pragma once

#include <cstdint>

#include "kv/codec/element.h"

namespace quire {

enum class ScaleKind : std::uint8_t { kNone, kTensor, kRow };

// A codec object holds what encoding one row needs; decoding needs the factor alone, which is the tensor's scale times
// the row's (KVRows::tensor_scale, row_scale()).

template <class ElementType>
struct PlainCodec {
  using Element = ElementType;
  using Code = typename Element::Code;
  static constexpr ScaleKind kScale = ScaleKind::kNone;

  QUIRE_HD Code encode(float value) const { return Element::encode(value); }
  QUIRE_HD static float decode(Code code, float) { return Element::decode(code); }
};

// Stores x / scale.
template <class ElementType>
struct TensorScaleCodec {
  using Element = ElementType;
  using Code = typename Element::Code;
  static constexpr ScaleKind kScale = ScaleKind::kTensor;

  float scale = 1.0f;

  QUIRE_HD Code encode(float value) const { return Element::encode(value / scale); }
  QUIRE_HD static float decode(Code code, float factor) { return Element::decode(code) * factor; }
};

// Stores x * (1 / scale) with scale = max(max|x| * (1 / kMax), 1e-6) over the row. Both are products with a rounded
// reciprocal and not quotients: so computed, scales and fp8 codes have the bits that vLLM's kernels leave in a cache.
template <class ElementType>
struct RowScaleCodec {
  using Element = ElementType;
  using Code = typename Element::Code;
  static constexpr ScaleKind kScale = ScaleKind::kRow;
  static constexpr float kSmallestScale = 1e-6f;

  float inverse = 1.0f;

  QUIRE_HD static float scale_of(float largest_magnitude) {
    const float scale = largest_magnitude * (1.0f / Element::kMax);
    return scale > kSmallestScale ? scale : kSmallestScale;
  }
  QUIRE_HD static RowScaleCodec of_scale(float scale) { return {1.0f / scale}; }

  QUIRE_HD Code encode(float value) const { return Element::encode(value * inverse); }
  QUIRE_HD static float decode(Code code, float factor) { return Element::decode(code) * factor; }
};

}  // namespace quire
