// The one list of tile instances; each dtype and element width compiles it in a file of its own.
#pragma once

#include "cuda/kernel/tile.inl.h"
#include "cuda/kernel/tile_instances.h"

namespace quire::cuda {

template <class Shape>
TileKernel tile_entry(DType dtype) {
  return {.key = {dtype, Shape::kBytes, Shape::kD, Shape::kDvPart, Shape::kStreams},
          .function = reinterpret_cast<const void*>(&tile_kernel<Shape>),
          .threads = Shape::kWarps * 32,
          .shared_bytes = Shape::kSharedBytes,
          .blocks = Shape::kBlocks,
          .rows = Shape::kRows};
}

// The head sizes of the decode instances.
template <class T, int kBytes>
const TileInstances& tile_instances(DType dtype) {
  static const TileInstances table = {
      tile_entry<TileShape<T, kBytes, 64, 64, 1>>(dtype),   tile_entry<TileShape<T, kBytes, 96, 96, 1>>(dtype),
      tile_entry<TileShape<T, kBytes, 128, 128, 1>>(dtype), tile_entry<TileShape<T, kBytes, 192, 192, 1>>(dtype),
      tile_entry<TileShape<T, kBytes, 256, 256, 1>>(dtype), tile_entry<TileShape<T, kBytes, 192, 128, 1>>(dtype),
      tile_entry<TileShape<T, kBytes, 64, 64, 2>>(dtype),
  };
  return table;
}

}  // namespace quire::cuda
