// Views of cache memory in the order of a layout: one layer by itself, or a layer inside a buffer of all layers.
#include <string>

#include "core/checked.h"
#include "kv/format.h"
#include "quire/kv_cache.h"

namespace quire {
namespace {

Status check_memory(const void* data) {
  if (data == nullptr) return invalid_argument("data: want the cache's memory, got a null pointer");
  const auto off = reinterpret_cast<std::uintptr_t>(data) % 4;
  if (off == 0) return {};
  return invalid_argument("data: want an address aligned to 4 bytes, got one that is off by " + std::to_string(off));
}

// The view of `shape` whose memory order is `order`, without gaps.
Result<TensorView> ordered_view(void* data, DType dtype, const std::vector<std::int64_t>& shape,
                                const std::vector<int>& order) {
  TensorView view{.data = data, .dtype = dtype, .rank = static_cast<std::int32_t>(shape.size())};
  for (std::size_t dim = 0; dim < shape.size(); ++dim) view.shape[dim] = shape[dim];
  std::int64_t stride = 1;
  for (std::size_t place = order.size(); place-- > 0;) {
    const auto dim = static_cast<std::size_t>(order[place]);
    view.strides[dim] = stride;
    const auto next = checked_mul(stride, shape[dim]);
    if (!next || *next > (std::int64_t{1} << 60)) {
      return resource_exhausted("spec: want a buffer below 2^60 elements, got shape " + shape_string(view));
    }
    stride = *next;
  }
  return view;
}

}  // namespace

Result<TensorView> view_kv_cache(const KVCacheSpec& spec, void* data, Device device) {
  QUIRE_ASSIGN_OR_RETURN(const std::vector<std::int64_t> shape, kv_cache_shape(spec));
  QUIRE_ASSIGN_OR_RETURN(const std::vector<int> order, kv_cache_stride_order(spec.format, spec.layout, false));
  QUIRE_RETURN_IF_ERROR(check_memory(data));
  const DType dtype = kv_storage_dtype(spec.cache_dtype, spec.model_dtype);
  QUIRE_ASSIGN_OR_RETURN(TensorView view, ordered_view(data, dtype, shape, order));
  view.device = device;
  return view;
}

Result<TensorView> view_layered_kv_cache(const KVCacheSpec& spec, const LayeredCache& cache) {
  QUIRE_ASSIGN_OR_RETURN(std::vector<std::int64_t> shape, kv_cache_shape(spec));
  QUIRE_ASSIGN_OR_RETURN(const std::vector<int> order, kv_cache_stride_order(spec.format, spec.layout, true));
  QUIRE_RETURN_IF_ERROR(check_memory(cache.data));
  if (cache.num_layers <= 0) {
    return invalid_argument("cache.num_layers: want > 0, got " + std::to_string(cache.num_layers));
  }
  if (cache.layer < 0 || cache.layer >= cache.num_layers) {
    return out_of_range("cache.layer: want [0, " + std::to_string(cache.num_layers) + "), got " +
                        std::to_string(cache.layer));
  }
  shape.insert(shape.begin(), cache.num_layers);
  const DType dtype = kv_storage_dtype(spec.cache_dtype, spec.model_dtype);
  QUIRE_ASSIGN_OR_RETURN(TensorView view, ordered_view(cache.data, dtype, shape, order));
  view.device = cache.device;
  return select(view, 0, cache.layer);
}

}  // namespace quire
