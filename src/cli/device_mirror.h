// DeviceMirror: host memory and its copies on the device that a runtime runs on; for the CPU it is the memory itself.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "quire/cuda.h"
#include "quire/runtime.h"
#include "quire/status.h"
#include "quire/tensor.h"

namespace quire::cli {

class DeviceMirror {
 public:
  explicit DeviceMirror(const Runtime& runtime) : runtime_(runtime) {}

  // Makes a copy of the memory, which must outlive the mirror; `bytes` may overlap no other.
  Status add(std::span<const std::byte> bytes);
  // The elements that a tensor reaches; none for an empty one.
  Status add(const TensorView& tensor);
  // Brings the device's copy of memory that was added up to date, or the host's. fetch waits, and returns what kernels
  // found wrong.
  Status send(std::span<const std::byte> bytes);
  Status fetch(std::span<std::byte> bytes);

  // The same view of the device's copy. The tensor must lie in memory that was added; an empty one stays empty.
  TensorView at(const TensorView& tensor) const;
  std::span<std::byte> at(std::span<std::byte> bytes) const;

 private:
  struct Range {
    const std::byte* host = nullptr;
    std::size_t bytes = 0;
    cuda::DeviceBuffer device;
  };
  bool is_needed() const { return runtime_.backplane == Backplane::kCuda; }
  std::byte* find(const void* host) const;

  Runtime runtime_;
  std::vector<Range> ranges_;
};

}  // namespace quire::cli
