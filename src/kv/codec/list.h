// The one list of codecs that a cache can have, and the step from a cache's data to its codec's type.
#pragma once

#include "kv/codec/codec.h"
#include "quire/attention.h"

namespace quire {

template <class... Codecs>
struct CodecTypes {};

// A new codec is added here; writers, kernels and tests go through this list.
using CodecList = CodecTypes<PlainCodec<Float32Element>, PlainCodec<Float16Element>, PlainCodec<BFloat16Element>,
                             TensorScaleCodec<E4M3Element>, TensorScaleCodec<E5M2Element>, RowScaleCodec<Int8Element>,
                             RowScaleCodec<E4M3Element>>;

template <class Codec>
constexpr bool codec_stores(DType dtype, bool has_row_scales) {
  return Codec::Element::kDType == dtype && (Codec::kScale == ScaleKind::kRow) == has_row_scales;
}

template <class Function, class... Codecs>
bool visit_codec_in(CodecTypes<Codecs...>, DType dtype, bool has_row_scales, Function&& function) {
  return ((codec_stores<Codecs>(dtype, has_row_scales) && (function(Codecs{}), true)) || ...);
}

// Calls function(Codec{}) with the codec of such a cache; false if there is none.
template <class Function>
bool visit_codec(DType dtype, bool has_row_scales, Function&& function) {
  return visit_codec_in(CodecList{}, dtype, has_row_scales, function);
}

}  // namespace quire
