// The token decode instances for caches that store bfloat16.
#include "cuda/kernel/decode_token_instances.inl.h"

namespace quire::cuda {

DecodeInstances decode_token_bf16() { return decode_token<DType::kBFloat16>(); }

}  // namespace quire::cuda
