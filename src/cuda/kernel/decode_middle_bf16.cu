// The decode instances of head size 128 and two streams of 64 for caches that store bfloat16.
#include "cuda/kernel/decode_instances.inl.h"

namespace quire::cuda {

template DecodeInstances decode_128<DType::kBFloat16>();
template DecodeInstances decode_pairs<DType::kBFloat16>();

}  // namespace quire::cuda
