// The tables of decode instances: a dtype of stored elements and a range of head sizes each, compiled in files of their
// own.
#pragma once

#include <span>

#include "cuda/kernel/decode.h"

namespace quire::cuda {

using DecodeInstances = std::span<const DecodeKernel>;

DecodeInstances decode_small_bf16();
DecodeInstances decode_small_f16();
DecodeInstances decode_small_e4m3();
DecodeInstances decode_small_int8();
DecodeInstances decode_middle_bf16();
DecodeInstances decode_middle_f16();
DecodeInstances decode_middle_e4m3();
DecodeInstances decode_middle_int8();
DecodeInstances decode_large_bf16();
DecodeInstances decode_large_f16();
DecodeInstances decode_large_e4m3();
DecodeInstances decode_large_int8();
DecodeInstances decode_wide_e4m3();
DecodeInstances decode_wide_int8();

}  // namespace quire::cuda
