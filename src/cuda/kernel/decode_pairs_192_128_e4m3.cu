// The decode instances of two streams of 64 and of head sizes 192/128 for caches that store e4m3.
#include "cuda/kernel/decode_instances.inl.h"

namespace quire::cuda {

template DecodeInstances decode_pairs<DType::kFloat8E4M3>();
template DecodeInstances decode_192_128<DType::kFloat8E4M3>();

}  // namespace quire::cuda
