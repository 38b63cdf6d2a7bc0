// The tile instances that multiply float16 from caches of 16-bit elements.
#include "cuda/kernel/tile_instances.inl.h"

namespace quire::cuda {

const TileInstances& tile_instances_f16() { return tile_instances<__half, 2>(DType::kFloat16); }

}  // namespace quire::cuda
