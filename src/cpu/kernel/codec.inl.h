// The functions that read each storage type.
#pragma once

#include "cpu/kernel/direct.inl.h"

namespace quire::cpu {
namespace {

using PackFunction = void (*)(const PackTask&);
using DotFunction = void (*)(const DotTask&);
using DirectFunction = void (*)(const DirectTask&);
using CopyFunction = void (*)(const void*, std::int32_t, float*);

// The functions of one storage type; null where it has none.
struct Codec {
  PackFunction keys = nullptr;
  PackFunction values = nullptr;
  DotFunction dot_direct = nullptr;  // only where a row is what the products take
  DirectFunction add_direct = nullptr;
  CopyFunction copy = nullptr;
};

template <class Isa, class C, DType kStorage>
QUIRE_INLINE Codec codec_of() {
  Codec codec{.keys = pack_keys_of<C, kStorage>,
              .values = pack_values_of<C, kStorage>,
              .add_direct = add_direct_of<C, kStorage>,
              .copy = copy_row_of<C, kStorage>};
  if constexpr (Isa::kTransposedLoads > 0 && C::kPerDword * dtype_bytes(kStorage) == 4) {
    codec.dot_direct = dot_direct_of<Isa, C>;
  }
  return codec;
}

QUIRE_INLINE Codec codec(Compute compute, DType storage) {
  if constexpr (Simd::kHasBf16) {
    if (compute == Compute::kBFloat16) {
      if (storage == DType::kBFloat16) return codec_of<Simd, BFloat16, DType::kBFloat16>();
      if (storage == DType::kFloat8E4M3) return codec_of<Simd, BFloat16, DType::kFloat8E4M3>();
      if (storage == DType::kFloat8E5M2) return codec_of<Simd, BFloat16, DType::kFloat8E5M2>();
      return codec_of<Simd, BFloat16, DType::kInt8>();
    }
  }
  if (storage == DType::kFloat16) return codec_of<Simd, Float32, DType::kFloat16>();
  if (storage == DType::kBFloat16) return codec_of<Simd, Float32, DType::kBFloat16>();
  if (storage == DType::kFloat8E4M3) return codec_of<Simd, Float32, DType::kFloat8E4M3>();
  if (storage == DType::kFloat8E5M2) return codec_of<Simd, Float32, DType::kFloat8E5M2>();
  if (storage == DType::kInt8) return codec_of<Simd, Float32, DType::kInt8>();
  return codec_of<Simd, Float32, DType::kFloat32>();
}

}  // namespace
}  // namespace quire::cpu
