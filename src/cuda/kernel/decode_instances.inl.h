// The one list of decode instances; each dtype compiles it in a file of its own.
#pragma once

#include "cuda/kernel/decode.inl.h"
#include "cuda/kernel/decode_instances.h"

namespace quire::cuda {

template <class Shape>
DecodeKernel decode_entry() {
  return {.key = {Shape::kKV, Shape::kD, Shape::kDvPart, Shape::kStreams, Shape::kRowTiles},
          .function = reinterpret_cast<const void*>(&decode_kernel<Shape>),
          .blocks = Shape::kBlocks,
          .threads = Shape::kWarps * 32,
          .shared_bytes = Shape::kMainBytes};
}

// The list: head sizes 64, 96, 128, 192, 256, the pair 192 / 128, and 64 / 2 x 64 for differential attention. Four row
// tiles of 192 and more do not fit the registers.
template <DType kKV>
DecodeInstances decode_small() {
  static const DecodeKernel table[] = {
      decode_entry<DecodeShape<kKV, 64, 64, 1, 1>>(),
      decode_entry<DecodeShape<kKV, 64, 64, 1, 4>>(),
      decode_entry<DecodeShape<kKV, 96, 96, 1, 1>>(),
      decode_entry<DecodeShape<kKV, 96, 96, 1, 4>>(),
  };
  return table;
}

template <DType kKV>
DecodeInstances decode_middle() {
  static const DecodeKernel table[] = {
      decode_entry<DecodeShape<kKV, 128, 128, 1, 1>>(), decode_entry<DecodeShape<kKV, 128, 128, 1, 2>>(),
      decode_entry<DecodeShape<kKV, 128, 128, 1, 4>>(), decode_entry<DecodeShape<kKV, 64, 64, 2, 1>>(),
      decode_entry<DecodeShape<kKV, 64, 64, 2, 2>>(),
  };
  return table;
}

template <DType kKV>
DecodeInstances decode_large() {
  static const DecodeKernel table[] = {
      decode_entry<DecodeShape<kKV, 192, 192, 1, 1>>(), decode_entry<DecodeShape<kKV, 192, 192, 1, 2>>(),
      decode_entry<DecodeShape<kKV, 256, 256, 1, 1>>(), decode_entry<DecodeShape<kKV, 256, 256, 1, 2>>(),
      decode_entry<DecodeShape<kKV, 192, 128, 1, 1>>(), decode_entry<DecodeShape<kKV, 192, 128, 1, 2>>(),
  };
  return table;
}

}  // namespace quire::cuda
