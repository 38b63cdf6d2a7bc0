// The one list of token decode instances; what a file compiles of it is what it instantiates.
#pragma once

#include "cuda/kernel/decode_instances.h"
#include "cuda/kernel/decode_token.inl.h"

namespace quire::cuda {

template <class... Shapes>
DecodeInstances token_table() {
  static const DecodeKernel table[] = {
      {.key = {.kv = Shapes::kKV, .head_size = Shapes::kD, .head_size_v = Shapes::kDv, .one_token = true},
       .function = reinterpret_cast<const void*>(&token_decode_kernel<Shapes>),
       .blocks = Shapes::kBlocks,
       .threads = Shapes::kWarps * 32,
       .shared_bytes = Shapes::kMainBytes,
       .combine = launch_combine_tokens}...};
  return table;
}

template <DType kKV>
DecodeInstances decode_token() {
  return token_table<DecodeShape<kKV, 64, 64, 1, 1>, DecodeShape<kKV, 128, 128, 1, 1>, DecodeShape<kKV, 192, 128, 1, 1>,
                     DecodeShape<kKV, 256, 256, 1, 1>>();
}

}  // namespace quire::cuda
