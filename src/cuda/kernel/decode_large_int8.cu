// The decode instances of large heads for caches that store int8.
#include "cuda/kernel/decode_instances.inl.h"

namespace quire::cuda {

DecodeInstances decode_large_int8() { return decode_large<DType::kInt8>(); }

}  // namespace quire::cuda
