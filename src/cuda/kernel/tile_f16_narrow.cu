// The tile instances that multiply float16 from caches of 8-bit elements.
#include "cuda/kernel/tile_instances.inl.h"

namespace quire::cuda {

const TileInstances& tile_instances_f16_narrow() { return tile_instances<__half, 1>(DType::kFloat16); }

}  // namespace quire::cuda
