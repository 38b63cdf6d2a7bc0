// The wide decode instances for caches that store int8.
#include "cuda/kernel/decode_wide_instances.inl.h"

namespace quire::cuda {

DecodeInstances decode_wide_int8() { return decode_wide<DType::kInt8>(); }

}  // namespace quire::cuda
