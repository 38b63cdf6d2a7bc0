// Launches a kernel whose beginning may run beside the end of the kernel before it on the stream.
#pragma once

#include <cuda_runtime.h>

#include "cuda/context.h"
#include "cuda/kernel/split.h"

namespace quire::cuda {

// The kernel waits for the one before by ptx::wait_for_primary(). Its blocks are placed beside those of a split kernel
// only if they ask for the same division of shared memory and L1.
inline Status launch_behind(dim3 grid, int threads, void (*kernel)(SplitParams), const SplitParams& params,
                            const Context& device, cudaStream_t stream) {
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = device.major >= 9 ? 1 : 0;
  QUIRE_CUDA_RETURN_IF_ERROR(
      cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared));
  return to_status(cudaLaunchKernelEx(&config, kernel, params), "cudaLaunchKernelEx");
}

}  // namespace quire::cuda
