// The wgmma tile instances that multiply float16.
#include "cuda/kernel/wgmma_instances.inl.h"

namespace quire::cuda {

const WgmmaInstances& wgmma_instances_f16() { return wgmma_instances<__half>(DType::kFloat16); }

}  // namespace quire::cuda
