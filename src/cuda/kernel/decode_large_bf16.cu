// The decode instances of head sizes 192 and 256 for caches that store bfloat16.
#include "cuda/kernel/decode_instances.inl.h"

namespace quire::cuda {

template DecodeInstances decode_192<DType::kBFloat16>();
template DecodeInstances decode_192_128<DType::kBFloat16>();
template DecodeInstances decode_256<DType::kBFloat16>();

}  // namespace quire::cuda
