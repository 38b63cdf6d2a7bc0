// Places the arrays of layers.
#include "backends/layer_floats.h"

namespace quire::backends {

Result<LayerFloats> LayerFloats::place(std::span<const float> values, const Runtime& runtime) {
  LayerFloats placed;
  if (values.empty()) return placed;
  if (runtime.backplane != Backplane::kCuda) {
    placed.host_.assign(values.begin(), values.end());
    return placed;
  }
  QUIRE_ASSIGN_OR_RETURN(placed.device_, cuda::DeviceBuffer::allocate(values.size_bytes()));
  QUIRE_RETURN_IF_ERROR(
      cuda::copy_to_device(placed.device_.data(), values.data(), values.size_bytes(), runtime.stream));
  QUIRE_RETURN_IF_ERROR(cuda::synchronize(runtime.stream));  // the layer may run on another stream first
  return placed;
}

}  // namespace quire::backends
