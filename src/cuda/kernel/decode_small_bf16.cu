// The decode instances of small heads for caches that store bfloat16.
#include "cuda/kernel/decode_instances.inl.h"

namespace quire::cuda {

DecodeInstances decode_small_bf16() { return decode_small<DType::kBFloat16>(); }

}  // namespace quire::cuda
