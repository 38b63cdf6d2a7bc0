// Finds and launches tile instances.
#include "cuda/kernel/tile.h"

#include "cuda/kernel/small.h"
#include "cuda/kernel/tile_instances.h"

namespace quire::cuda {

const TileKernel* find_tile_kernel(const TileKey& key) {
  const bool is_bf16 = key.dtype == DType::kBFloat16;
  if (!is_bf16 && key.dtype != DType::kFloat16) return nullptr;
  const TileInstances& instances = key.element_bytes == 2 ? (is_bf16 ? tile_instances_bf16() : tile_instances_f16())
                                   : is_bf16              ? tile_instances_bf16_narrow()
                                                          : tile_instances_f16_narrow();
  for (const TileKernel& kernel : instances) {
    if (kernel.key == key) return &kernel;
  }
  return nullptr;
}

Status launch_tile(const TileKernel& kernel, const SplitParams& params, cudaStream_t stream) {
  if (!kernel.uses_wgmma || !is_small(params.shape)) QUIRE_RETURN_IF_ERROR(launch_prepare(params, stream));
  if (kernel.uses_wgmma) return launch_wgmma(kernel, params, stream);
  QUIRE_CUDA_RETURN_IF_ERROR(
      cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize, kernel.shared_bytes));
  SplitParams copy = params;
  void* arguments[] = {&copy};
  const auto blocks = static_cast<unsigned>(params.shape.num_groups * params.args.kv.num_kv_heads);
  QUIRE_CUDA_RETURN_IF_ERROR(cudaLaunchKernel(kernel.function, dim3(blocks),
                                              dim3(static_cast<unsigned>(kernel.threads)), arguments,
                                              static_cast<std::size_t>(kernel.shared_bytes), stream));
  return {};
}

}  // namespace quire::cuda
