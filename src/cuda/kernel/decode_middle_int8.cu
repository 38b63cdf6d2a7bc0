// The decode instances of middle heads for caches that store int8.
#include "cuda/kernel/decode_instances.inl.h"

namespace quire::cuda {

DecodeInstances decode_middle_int8() { return decode_middle<DType::kInt8>(); }

}  // namespace quire::cuda
