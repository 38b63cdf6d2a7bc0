// The tile instances that multiply bfloat16 from caches of 8-bit elements.
#include "cuda/kernel/tile_instances.inl.h"

namespace quire::cuda {

const TileInstances& tile_instances_bf16_narrow() { return tile_instances<__nv_bfloat16, 1>(DType::kBFloat16); }

}  // namespace quire::cuda
