// The decode instances of head size 128 and two streams of 64 for caches that store float16.
#include "cuda/kernel/decode_instances.inl.h"

namespace quire::cuda {

template DecodeInstances decode_128<DType::kFloat16>();
template DecodeInstances decode_pairs<DType::kFloat16>();

}  // namespace quire::cuda
