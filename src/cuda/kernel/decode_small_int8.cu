// The decode instances of head sizes 64 and 96 for caches that store int8.
#include "cuda/kernel/decode_instances.inl.h"

namespace quire::cuda {

template DecodeInstances decode_64<DType::kInt8>();
template DecodeInstances decode_96<DType::kInt8>();

}  // namespace quire::cuda
