// The wgmma tile instances of pairs of heads.
#include "cuda/kernel/wgmma_instances.inl.h"

namespace quire::cuda {

const WgmmaPairInstances& wgmma_pair_instances() {
  static const WgmmaPairInstances table = {
      wgmma_entry<WgmmaShape<__nv_bfloat16, 64, 64, 2>>(DType::kBFloat16),
      wgmma_entry<WgmmaShape<__half, 64, 64, 2>>(DType::kFloat16),
  };
  return table;
}

}  // namespace quire::cuda
