// Launches the combine kernel behind a split kernel.
#pragma once

#include "cuda/context.h"
#include "cuda/kernel/split.h"

namespace quire::cuda {

Status launch_combine(const SplitParams& params, const Context& device, cudaStream_t stream);

// The same behind a token decode kernel.
Status launch_combine_tokens(const SplitParams& params, const Context& device, cudaStream_t stream);

}  // namespace quire::cuda
