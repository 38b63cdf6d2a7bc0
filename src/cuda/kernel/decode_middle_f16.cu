// The decode instances of middle heads for caches that store float16.
#include "cuda/kernel/decode_instances.inl.h"

namespace quire::cuda {

DecodeInstances decode_middle_f16() { return decode_middle<DType::kFloat16>(); }

}  // namespace quire::cuda
