// The decode instances of large heads for caches that store float16.
#include "cuda/kernel/decode_instances.inl.h"

namespace quire::cuda {

DecodeInstances decode_large_f16() { return decode_large<DType::kFloat16>(); }

}  // namespace quire::cuda
