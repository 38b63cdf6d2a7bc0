// The decode instances of head size 192 for caches that store int8.
#include "cuda/kernel/decode_instances.inl.h"

namespace quire::cuda {

template DecodeInstances decode_192<DType::kInt8>();
template DecodeInstances decode_192_128<DType::kInt8>();

}  // namespace quire::cuda
