// The wide decode instances for caches that store float8 e4m3.
#include "cuda/kernel/decode_wide_instances.inl.h"

namespace quire::cuda {

DecodeInstances decode_wide_e4m3() { return decode_wide<DType::kFloat8E4M3>(); }

}  // namespace quire::cuda
