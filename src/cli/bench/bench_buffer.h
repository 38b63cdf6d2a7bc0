// BenchBuffer: memory where a benchmark's runtime works, on the host or on the device.
#pragma once

#include <cstring>
#include <span>
#include <utility>

#include "cli/bench/page_buffer.h"
#include "cli/table.h"
#include "quire/cuda.h"
#include "quire/runtime.h"
#include "quire/tensor.h"

namespace quire::cli {

class BenchBuffer {
 public:
  BenchBuffer() = default;
  static Result<BenchBuffer> allocate(std::size_t bytes, const Runtime& runtime) {
    BenchBuffer buffer;
    buffer.size_ = bytes;
    buffer.stream_ = runtime.stream;
    if (runtime.backplane == Backplane::kCuda) {
      buffer.on_device_ = true;
      QUIRE_ASSIGN_OR_RETURN(buffer.device_, cuda::DeviceBuffer::allocate(bytes));
    } else {
      buffer.host_ = PageBuffer(bytes);
      if (buffer.host_.data() == nullptr) return resource_exhausted("memory: want " + std::to_string(bytes) + " bytes");
    }
    return buffer;
  }

  std::byte* data() const { return on_device_ ? device_.bytes().data() : host_.data(); }
  std::span<std::byte> bytes() const { return {data(), size_}; }
  Device device() const { return on_device_ ? Device{DeviceType::kCuda, 0} : Device{}; }

  Status write(const void* from, std::size_t bytes) {
    if (on_device_) {
      QUIRE_RETURN_IF_ERROR(cuda::copy_to_device(data(), from, bytes, stream_));
      return cuda::synchronize(stream_);
    }
    std::memcpy(data(), from, bytes);
    return {};
  }
  Status read(void* to, std::size_t bytes) const {
    if (on_device_) return cuda::copy_to_host(to, data(), bytes, stream_);
    std::memcpy(to, data(), bytes);
    return {};
  }

 private:
  PageBuffer host_;
  cuda::DeviceBuffer device_;
  std::size_t size_ = 0;
  void* stream_ = nullptr;
  bool on_device_ = false;
};

}  // namespace quire::cli
