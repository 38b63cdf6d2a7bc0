// LayerFloats: a small array that belongs to a layer (slopes, sinks, norm weights), where the layer's kernels read it.
#pragma once

#include <span>
#include <vector>

#include "quire/cuda.h"
#include "quire/runtime.h"
#include "quire/status.h"

namespace quire::backends {

class LayerFloats {
 public:
  // Copies `values`; on a device the copy is there when the call returns.
  static Result<LayerFloats> place(std::span<const float> values, const Runtime& runtime);

  // Null for an empty array.
  const float* data() const {
    return device_.size() > 0 ? static_cast<const float*>(device_.data()) : (host_.empty() ? nullptr : host_.data());
  }
  bool empty() const { return device_.size() == 0 && host_.empty(); }

 private:
  std::vector<float> host_;
  cuda::DeviceBuffer device_;
};

}  // namespace quire::backends
