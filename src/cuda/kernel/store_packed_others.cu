// The packed cache update from float16 and float32 rows.
#include "cuda/kernel/store_packed.inl.h"

namespace quire::cuda {

bool launch_packed_float16(const PackedParams& params, cudaStream_t stream) {
  return packed::launch<Float16Element>(params, stream);
}
bool launch_packed_float32(const PackedParams& params, cudaStream_t stream) {
  return packed::launch<Float32Element>(params, stream);
}

}  // namespace quire::cuda
