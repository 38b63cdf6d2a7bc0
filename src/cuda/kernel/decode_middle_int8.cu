// The decode instances of head size 128 and two streams of 64 for caches that store int8.
#include "cuda/kernel/decode_instances.inl.h"

namespace quire::cuda {

template DecodeInstances decode_128<DType::kInt8>();
template DecodeInstances decode_pairs<DType::kInt8>();

}  // namespace quire::cuda
