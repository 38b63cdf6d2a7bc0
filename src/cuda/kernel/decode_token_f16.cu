// The token decode instances for caches that store float16.
#include "cuda/kernel/decode_token_instances.inl.h"

namespace quire::cuda {

DecodeInstances decode_token_f16() { return decode_token<DType::kFloat16>(); }

}  // namespace quire::cuda
