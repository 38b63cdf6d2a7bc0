// The decode instances of middle heads for caches that store bfloat16.
#include "cuda/kernel/decode_instances.inl.h"

namespace quire::cuda {

DecodeInstances decode_middle_bf16() { return decode_middle<DType::kBFloat16>(); }

}  // namespace quire::cuda
