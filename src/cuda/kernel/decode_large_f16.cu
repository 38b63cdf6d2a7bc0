// The decode instances of head sizes 192 and 256 for caches that store float16.
#include "cuda/kernel/decode_instances.inl.h"

namespace quire::cuda {

template DecodeInstances decode_192<DType::kFloat16>();
template DecodeInstances decode_192_128<DType::kFloat16>();
template DecodeInstances decode_256<DType::kFloat16>();

}  // namespace quire::cuda
