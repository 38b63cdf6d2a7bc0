// The decode instances of large heads for caches that store float8_e4m3.
#include "cuda/kernel/decode_instances.inl.h"

namespace quire::cuda {

DecodeInstances decode_large_e4m3() { return decode_large<DType::kFloat8E4M3>(); }

}  // namespace quire::cuda
