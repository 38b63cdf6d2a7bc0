// Context: what the library keeps for each device (its size, and the record that kernels leave faults in), and the
// translation of CUDA's errors.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "cuda/fault.h"
#include "quire/status.h"

namespace quire::cuda {

struct Context {
  int device = 0;
  int major = 0;
  int minor = 0;
  int multiprocessors = 0;
  int shared_bytes = 0;           // that one block may have
  int shared_bytes_all = 0;       // of a multiprocessor
  FaultRecord* record = nullptr;  // pinned host memory
  FaultRecord* record_device = nullptr;
};

// The context of the current device, made on first use; kUnsupported where there is no device.
Result<const Context*> context();

// The fault that a kernel left since the last look, as an error; the record is cleared. Does not wait for the device.
Status take_fault(const Context& context);

// `what` is the call that failed.
Status to_status(cudaError_t error, const char* what);

}  // namespace quire::cuda

#define QUIRE_CUDA_RETURN_IF_ERROR(call) QUIRE_RETURN_IF_ERROR(::quire::cuda::to_status((call), #call))
