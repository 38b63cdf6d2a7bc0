// The tables of decode instances: a dtype of stored elements and a head size each. The files decode_*.cu compile
// them, as many each as take the compiler under 20 s.
#pragma once

#include <span>

#include "cuda/kernel/decode.h"

namespace quire::cuda {

using DecodeInstances = std::span<const DecodeKernel>;

template <DType kKV>
DecodeInstances decode_64();
template <DType kKV>
DecodeInstances decode_96();
template <DType kKV>
DecodeInstances decode_pairs();  // two streams of 64, for differential attention
template <DType kKV>
DecodeInstances decode_128();
template <DType kKV>
DecodeInstances decode_192();
template <DType kKV>
DecodeInstances decode_192_128();
template <DType kKV>
DecodeInstances decode_256();

DecodeInstances decode_token_bf16();
DecodeInstances decode_token_f16();
DecodeInstances decode_wide_e4m3();
DecodeInstances decode_wide_int8();

}  // namespace quire::cuda
