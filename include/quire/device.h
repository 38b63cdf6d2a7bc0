// Device: where memory is, in DLPack's terms.
#pragma once

#include <cstdint>

namespace quire {

enum class DeviceType : std::int32_t { kCpu = 1, kCuda = 2 };  // DLPack's values

struct Device {
  DeviceType type = DeviceType::kCpu;
  std::int32_t index = 0;
  friend bool operator==(const Device&, const Device&) = default;
};

}  // namespace quire
