// The decode instances of small heads for caches that store int8.
#include "cuda/kernel/decode_instances.inl.h"

namespace quire::cuda {

DecodeInstances decode_small_int8() { return decode_small<DType::kInt8>(); }

}  // namespace quire::cuda
