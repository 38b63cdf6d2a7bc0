// The decode instances of small heads for caches that store float16.
#include "cuda/kernel/decode_instances.inl.h"

namespace quire::cuda {

DecodeInstances decode_small_f16() { return decode_small<DType::kFloat16>(); }

}  // namespace quire::cuda
