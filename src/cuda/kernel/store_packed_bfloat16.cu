// The packed cache update from bfloat16 rows.
#include "cuda/kernel/store_packed.inl.h"

namespace quire::cuda {

bool launch_packed_bfloat16(const PackedParams& params, cudaStream_t stream) {
  return packed::launch<BFloat16Element>(params, stream);
}

}  // namespace quire::cuda
