// Keeps the device's copies of host memory.
#include "cli/device_mirror.h"

namespace quire::cli {

Status DeviceMirror::add(std::span<const std::byte> bytes) {
  if (!is_needed() || bytes.empty()) return {};
  Range range{.host = bytes.data(), .bytes = bytes.size(), .device = {}};
  QUIRE_ASSIGN_OR_RETURN(range.device, cuda::DeviceBuffer::allocate(bytes.size()));
  ranges_.push_back(std::move(range));
  return send(bytes);
}

Status DeviceMirror::add(const TensorView& tensor) {
  if (tensor.empty()) return {};
  const std::int64_t bytes = tensor.extent_elements() * dtype_bytes(tensor.dtype);
  return add(std::span<const std::byte>(tensor.as<const std::byte>(), static_cast<std::size_t>(bytes)));
}

Status DeviceMirror::send(std::span<const std::byte> bytes) {
  if (!is_needed() || bytes.empty()) return {};
  return cuda::copy_to_device(find(bytes.data()), bytes.data(), bytes.size(), runtime_.stream);
}

Status DeviceMirror::fetch(std::span<std::byte> bytes) {
  if (!is_needed()) return {};
  QUIRE_RETURN_IF_ERROR(cuda::check(runtime_.stream));
  if (bytes.empty()) return {};
  return cuda::copy_to_host(bytes.data(), find(bytes.data()), bytes.size(), runtime_.stream);
}

TensorView DeviceMirror::at(const TensorView& tensor) const {
  if (!is_needed() || tensor.empty()) return tensor;
  TensorView moved = tensor;
  moved.data = find(tensor.data);
  moved.device = {DeviceType::kCuda, 0};
  return moved;
}

std::span<std::byte> DeviceMirror::at(std::span<std::byte> bytes) const {
  return is_needed() && !bytes.empty() ? std::span(find(bytes.data()), bytes.size()) : bytes;
}

std::byte* DeviceMirror::find(const void* host) const {
  const auto* at = static_cast<const std::byte*>(host);
  for (const Range& range : ranges_) {
    if (at >= range.host && at < range.host + range.bytes) {
      return range.device.bytes().data() + (at - range.host);
    }
  }
  return nullptr;
}

}  // namespace quire::cli
