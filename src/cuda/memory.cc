// The device memory and waiting of quire/cuda.h.
#include <cuda_runtime_api.h>

#include <utility>

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

Result<DeviceBuffer> DeviceBuffer::allocate(std::size_t bytes) {
  DeviceBuffer buffer;
  if (bytes == 0) return buffer;
  QUIRE_CUDA_RETURN_IF_ERROR(cudaMalloc(&buffer.data_, bytes));
  buffer.size_ = bytes;
  return buffer;
}

DeviceBuffer::DeviceBuffer(DeviceBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

DeviceBuffer::~DeviceBuffer() { static_cast<void>(cudaFree(data_)); }

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

}  // namespace quire::cuda
