// The decode instances of head size 256 for caches that store int8.
#include "cuda/kernel/decode_instances.inl.h"

namespace quire::cuda {

template DecodeInstances decode_256<DType::kInt8>();

}  // namespace quire::cuda
