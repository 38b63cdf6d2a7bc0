// The device memory and waiting of quire/cuda.h.
#include <cuda_runtime_api.h>

#include <algorithm>

#include "cuda/attention.h"
#include "cuda/context.h"
#include "quire/cuda.h"

namespace quire::cuda {

bool is_compiled() { return true; }

Result<DeviceInfo> device_info() {
  QUIRE_ASSIGN_OR_RETURN(const Context* device, context());
  cudaDeviceProp properties;
  QUIRE_CUDA_RETURN_IF_ERROR(cudaGetDeviceProperties(&properties, device->device));
  return DeviceInfo{.name = properties.name,
                    .major = device->major,
                    .minor = device->minor,
                    .multiprocessors = device->multiprocessors,
                    .memory_bytes = static_cast<std::int64_t>(properties.totalGlobalMem)};
}

Status synchronize(void* stream) {
  return to_status(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "cudaStreamSynchronize");
}

Status check(void* stream) {
  QUIRE_ASSIGN_OR_RETURN(const Context* device, context());
  QUIRE_RETURN_IF_ERROR(synchronize(stream));
  return take_fault(*device);
}

template <MemoryKind kKind>
Result<Buffer<kKind>> Buffer<kKind>::allocate(std::size_t bytes) {
  Buffer buffer;
  if (bytes == 0) return buffer;
  if constexpr (kKind == MemoryKind::kDevice) {
    QUIRE_CUDA_RETURN_IF_ERROR(cudaMalloc(&buffer.data_, bytes));
  } else {
    QUIRE_CUDA_RETURN_IF_ERROR(cudaMallocHost(&buffer.data_, bytes));
  }
  buffer.size_ = bytes;
  return buffer;
}

template <MemoryKind kKind>
Buffer<kKind>::~Buffer() {
  static_cast<void>(kKind == MemoryKind::kDevice ? cudaFree(data_) : cudaFreeHost(data_));
}

template class Buffer<MemoryKind::kDevice>;
template class Buffer<MemoryKind::kPinnedHost>;

Status copy_to_device(void* device, const void* host, std::size_t bytes, void* stream) {
  return to_status(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, static_cast<cudaStream_t>(stream)),
                   "cudaMemcpyAsync");
}

Status copy_to_host(void* host, const void* device, std::size_t bytes, void* stream) {
  QUIRE_CUDA_RETURN_IF_ERROR(
      cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, static_cast<cudaStream_t>(stream)));
  return synchronize(stream);
}

Status fill(void* device, unsigned char value, std::size_t bytes, void* stream) {
  return to_status(cudaMemsetAsync(device, value, bytes, static_cast<cudaStream_t>(stream)), "cudaMemsetAsync");
}

Status fill_with_zeros(const TensorView& output, const Runtime& runtime) {
  const auto bytes = static_cast<std::size_t>(dtype_bytes(output.dtype));
  const auto stream = static_cast<cudaStream_t>(runtime.stream);
  const auto count = [](std::int64_t value) { return static_cast<std::size_t>(value); };
  const auto clear = [&](void* data, std::int64_t pitch, std::int64_t width, std::int64_t rows) {
    // The pitch of a single row means nothing, but is checked.
    const std::size_t pitch_bytes = count(std::max(pitch, width)) * bytes;
    return to_status(cudaMemset2DAsync(data, pitch_bytes, 0, count(width) * bytes, count(rows), stream),
                     "cudaMemset2DAsync");
  };
  if (output.num_elements() == 0) return {};
  const std::int64_t tokens = output.size(0);
  const std::int64_t heads = output.size(1);
  if (heads == 1 || output.stride(1) == output.size(2)) {
    return clear(output.data, output.stride(0), heads * output.size(2), tokens);
  }
  for (std::int64_t token = 0; token < tokens; ++token) {
    std::byte* row = output.as<std::byte>() + count(token * output.stride(0)) * bytes;
    QUIRE_RETURN_IF_ERROR(clear(row, output.stride(1), output.size(2), heads));
  }
  return {};
}

}  // namespace quire::cuda
