// The decode instances of head sizes 64 and 96 for caches that store bfloat16 and float16.
#include "cuda/kernel/decode_instances.inl.h"

namespace quire::cuda {

template DecodeInstances decode_64<DType::kBFloat16>();
template DecodeInstances decode_96<DType::kBFloat16>();
template DecodeInstances decode_64<DType::kFloat16>();
template DecodeInstances decode_96<DType::kFloat16>();

}  // namespace quire::cuda
