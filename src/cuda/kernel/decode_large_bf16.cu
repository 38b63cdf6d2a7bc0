// The decode instances of large heads for caches that store bfloat16.
#include "cuda/kernel/decode_instances.inl.h"

namespace quire::cuda {

DecodeInstances decode_large_bf16() { return decode_large<DType::kBFloat16>(); }

}  // namespace quire::cuda
