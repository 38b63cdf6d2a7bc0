// The wgmma tile instances but for those of pairs of heads; each dtype compiles them in a file of its own.
#pragma once

#include "cuda/kernel/wgmma_tile.inl.h"

namespace quire::cuda {

template <class Shape>
TileKernel wgmma_entry(DType dtype) {
  return {.key = {dtype, 2, Shape::kD, Shape::kDvPart, Shape::kStreams},
          .function = reinterpret_cast<const void*>(&wgmma_kernel<Shape>),
          .threads = Shape::kThreads,
          .shared_bytes = Shape::kSharedBytes,
          .static_bytes = 0,
          .blocks = 1,
          .rows = Shape::kRows,
          .keys = Shape::kKeys,
          .uses_wgmma = true};
}

template <class T>
const WgmmaInstances& wgmma_instances(DType dtype) {
  static const WgmmaInstances table = {
      wgmma_entry<WgmmaShape<T, 64, 64>>(dtype),   wgmma_entry<WgmmaShape<T, 128, 128>>(dtype),
      wgmma_entry<WgmmaShape<T, 192, 192>>(dtype), wgmma_entry<WgmmaShape<T, 256, 256>>(dtype),
      wgmma_entry<WgmmaShape<T, 192, 128>>(dtype),
  };
  return table;
}

}  // namespace quire::cuda
