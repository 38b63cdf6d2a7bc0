// The wgmma tile instances that multiply bfloat16.
#include "cuda/kernel/wgmma_instances.inl.h"

namespace quire::cuda {

const WgmmaInstances& wgmma_instances_bf16() { return wgmma_instances<__nv_bfloat16>(DType::kBFloat16); }

}  // namespace quire::cuda
