// The one list of decode instances; what a file compiles of it is what it instantiates.
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

template <class... Shapes>
DecodeInstances decode_table() {
  static const DecodeKernel table[] = {decode_entry<Shapes>()...};
  return table;
}

// The list. Four row tiles of 192 and more do not fit the registers.
template <DType kKV>
DecodeInstances decode_64() {
  return decode_table<DecodeShape<kKV, 64, 64, 1, 1>, DecodeShape<kKV, 64, 64, 1, 4>>();
}
template <DType kKV>
DecodeInstances decode_96() {
  return decode_table<DecodeShape<kKV, 96, 96, 1, 1>, DecodeShape<kKV, 96, 96, 1, 4>>();
}
template <DType kKV>
DecodeInstances decode_pairs() {
  return decode_table<DecodeShape<kKV, 64, 64, 2, 1>, DecodeShape<kKV, 64, 64, 2, 2>>();
}
template <DType kKV>
DecodeInstances decode_128() {
  return decode_table<DecodeShape<kKV, 128, 128, 1, 1>, DecodeShape<kKV, 128, 128, 1, 2>,
                      DecodeShape<kKV, 128, 128, 1, 4>>();
}
template <DType kKV>
DecodeInstances decode_192() {
  return decode_table<DecodeShape<kKV, 192, 192, 1, 1>, DecodeShape<kKV, 192, 192, 1, 2>>();
}
template <DType kKV>
DecodeInstances decode_192_128() {
  return decode_table<DecodeShape<kKV, 192, 128, 1, 1>, DecodeShape<kKV, 192, 128, 1, 2>>();
}
template <DType kKV>
DecodeInstances decode_256() {
  return decode_table<DecodeShape<kKV, 256, 256, 1, 1>, DecodeShape<kKV, 256, 256, 1, 2>>();
}

}  // namespace quire::cuda
