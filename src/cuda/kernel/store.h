// The cache update's kernels: rotation, and the store of new rows.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/fault.h"
#include "kv/store.h"
#include "quire/status.h"

namespace quire::cuda {

struct StoreParams {
  StoreArgs store;
  FaultRecord* record = nullptr;
};
Status launch_store(const StoreParams& params, cudaStream_t stream);

struct RotateParams {
  RopeStoreArgs rope;
  StoreArgs store;  // whose keys are rotated where their slot is >= 0
  FaultRecord* record = nullptr;
};
Status launch_rotate(const RotateParams& params, cudaStream_t stream);

}  // namespace quire::cuda
