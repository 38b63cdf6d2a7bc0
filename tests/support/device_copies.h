// DeviceCopies: what a test keeps on the host, brought to where a runtime runs and back. On the CPU nothing moves.
#pragma once

#include <cstring>
#include <span>
#include <vector>

#include "quire/cuda.h"
#include "quire/runtime.h"
#include "quire/tensor.h"

namespace quire::test {

class DeviceCopies {
 public:
  explicit DeviceCopies(const Runtime& runtime) : runtime_(runtime) {}

  bool on_device() const { return runtime_.backplane == Backplane::kCuda; }

  // The tensor where the runtime runs; an empty one stays empty. Errors stay in status().
  TensorView place(const TensorView& host) {
    if (!on_device() || host.empty()) return host;
    TensorView moved = host;
    const auto bytes = static_cast<std::size_t>(host.extent_elements() * dtype_bytes(host.dtype));
    moved.data = place(std::span<const std::byte>(host.as<const std::byte>(), bytes));
    moved.device = {DeviceType::kCuda, 0};
    return moved;
  }
  template <class T>
  const T* place(const std::vector<T>& host) {
    if (!on_device() || host.empty()) return host.data();
    return reinterpret_cast<const T*>(place(std::as_bytes(std::span<const T>(host))));
  }
  // Scratch of the runtime, filled with ones' bits.
  std::span<std::byte> scratch(std::size_t bytes) {
    image_.assign(bytes, std::byte{0xff});
    if (!on_device()) return image_;
    return {place(std::span<const std::byte>(image_)), bytes};
  }
  // Waits, and copies everything that was placed since the last call, but for scratch, back to the host.
  Status fetch() {
    if (!on_device()) return status_;
    QUIRE_RETURN_IF_ERROR(status_);
    QUIRE_RETURN_IF_ERROR(cuda::check(runtime_.stream));
    for (const Copy& copy : copies_) {
      if (copy.host == image_.data()) continue;
      QUIRE_RETURN_IF_ERROR(cuda::copy_to_host(const_cast<std::byte*>(copy.host), copy.device.data(),
                                               copy.device.size(), runtime_.stream));
    }
    return {};
  }
  const Status& status() const { return status_; }

 private:
  struct Copy {
    const std::byte* host = nullptr;
    cuda::DeviceBuffer device;
  };

  std::byte* place(std::span<const std::byte> host) {
    Result<cuda::DeviceBuffer> buffer = cuda::DeviceBuffer::allocate(host.size());
    status_ = buffer.status();
    if (!status_.ok() || host.empty()) return nullptr;
    status_ = cuda::copy_to_device(buffer->data(), host.data(), host.size(), runtime_.stream);
    copies_.push_back({host.data(), std::move(*buffer)});
    return copies_.back().device.bytes().data();
  }

  Runtime runtime_;
  Status status_;
  std::vector<Copy> copies_;
  std::vector<std::byte> image_;
};

}  // namespace quire::test
