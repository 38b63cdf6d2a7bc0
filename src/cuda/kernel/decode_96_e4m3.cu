// The decode instances of head size 96 for caches that store float8_e4m3.
#include "cuda/kernel/decode_instances.inl.h"

namespace quire::cuda {

template DecodeInstances decode_96<DType::kFloat8E4M3>();

}  // namespace quire::cuda
