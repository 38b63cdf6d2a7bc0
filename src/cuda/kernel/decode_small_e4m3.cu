// The decode instances of small heads for caches that store float8_e4m3.
#include "cuda/kernel/decode_instances.inl.h"

namespace quire::cuda {

DecodeInstances decode_small_e4m3() { return decode_small<DType::kFloat8E4M3>(); }

}  // namespace quire::cuda
