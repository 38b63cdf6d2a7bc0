// The one list of wide decode instances; each dtype compiles it in a file of its own.
#pragma once

#include "cuda/kernel/decode_instances.h"
#include "cuda/kernel/decode_wide.inl.h"

namespace quire::cuda {

template <class Shape>
DecodeKernel wide_entry() {
  return {.key = {.kv = Shape::kKV,
                  .head_size = Shape::kD,
                  .head_size_v = Shape::kDv,
                  .heads = Shape::kHeads,
                  .inline_scales = kInlineScales<Shape>},
          .function = reinterpret_cast<const void*>(&wide_decode_kernel<Shape>),
          .blocks = Shape::kBlocks,
          .threads = Shape::kThreads,
          .shared_bytes = Shape::kMainBytes};
}

// Eight or four kv heads a block, with and without scales behind rows.
template <DType kKV>
DecodeInstances decode_wide() {
  static const DecodeKernel table[] = {
      wide_entry<WideShape<kKV, 128, 8, false>>(), wide_entry<WideShape<kKV, 128, 8, true>>(),
      wide_entry<WideShape<kKV, 128, 4, false>>(), wide_entry<WideShape<kKV, 128, 4, true>>()};
  return table;
}

}  // namespace quire::cuda
