// TensorView: construction, slicing and the checks that every entry of the public API makes.
#include "quire/tensor.h"

#include <algorithm>
#include <limits>

#include "core/checked.h"

namespace quire {
namespace {

std::string join(const std::int64_t* values, int count) {
  std::string text = "[";
  for (int i = 0; i < count; ++i) {
    text += i == 0 ? "" : ", ";
    text += values[i] == kAny ? "*" : std::to_string(values[i]);
  }
  return text + "]";
}

std::string argument(const TensorRequirement& want) { return std::string(want.name); }

Status check_extent(const TensorView& tensor, const TensorRequirement& want) {
  std::int64_t last = 0;
  std::int64_t elements = 1;
  for (int dim = 0; dim < tensor.rank; ++dim) {
    if (tensor.size(dim) < 0)
      return invalid_argument(argument(want) + ".shape: want sizes >= 0, got " + shape_string(tensor));
    if (tensor.stride(dim) < 0) {
      return invalid_argument(argument(want) + ".strides: want strides >= 0, got " +
                              join(tensor.strides.data(), tensor.rank));
    }
    elements = tensor.size(dim) == 0 ? 0 : elements;
  }
  if (elements == 0) return {};
  for (int dim = 0; dim < tensor.rank; ++dim) {
    const auto span = checked_mul(tensor.size(dim) - 1, tensor.stride(dim));
    const auto reach = span ? checked_add(last, *span) : std::nullopt;
    const auto count = checked_mul(elements, tensor.size(dim));
    if (!reach || !count || *reach > std::numeric_limits<std::int64_t>::max() / 8 - 1) {
      return resource_exhausted(argument(want) + ": want an extent below 2^60 elements, got shape " +
                                shape_string(tensor) + " with strides " + join(tensor.strides.data(), tensor.rank));
    }
    last = *reach;
    elements = *count;
  }
  return {};
}

}  // namespace

std::string device_name(Device device) {
  return device.type == DeviceType::kCpu ? "cpu" : "cuda:" + std::to_string(device.index);
}

std::int64_t TensorView::num_elements() const {
  std::int64_t count = 1;
  for (int dim = 0; dim < rank; ++dim) count *= size(dim);
  return count;
}

std::int64_t TensorView::extent_elements() const {
  std::int64_t last = 0;
  for (int dim = 0; dim < rank; ++dim) {
    if (size(dim) == 0) return 0;
    last += (size(dim) - 1) * stride(dim);
  }
  return last + 1;
}

bool TensorView::is_contiguous() const {
  std::int64_t expected = 1;
  for (int dim = rank - 1; dim >= 0; --dim) {
    if (size(dim) != 1 && stride(dim) != expected) return false;
    expected *= size(dim);
  }
  return true;
}

Result<TensorView> make_tensor(void* data, DType dtype, std::initializer_list<std::int64_t> shape, Device device) {
  if (shape.size() > static_cast<std::size_t>(kMaxRank)) {
    return invalid_argument("shape: want at most " + std::to_string(kMaxRank) + " dimensions, got " +
                            std::to_string(shape.size()));
  }
  TensorView tensor{.data = data, .device = device, .dtype = dtype, .rank = static_cast<std::int32_t>(shape.size())};
  std::copy(shape.begin(), shape.end(), tensor.shape.begin());
  std::int64_t stride = 1;
  for (int dim = tensor.rank - 1; dim >= 0; --dim) {
    tensor.strides[static_cast<std::size_t>(dim)] = stride;
    const auto next =
        tensor.size(dim) < 0 ? std::nullopt : checked_mul(stride, std::max<std::int64_t>(tensor.size(dim), 1));
    if (!next || *next > std::numeric_limits<std::int64_t>::max() / 8) {
      return invalid_argument("shape: want sizes >= 0 with a product below 2^60, got " + shape_string(tensor));
    }
    stride = *next;
  }
  return tensor;
}

TensorView select(const TensorView& tensor, int dim, std::int64_t index) {
  TensorView out = slice(tensor, dim, index, index + 1);
  for (int i = dim; i + 1 < out.rank; ++i) {
    out.shape[static_cast<std::size_t>(i)] = out.size(i + 1);
    out.strides[static_cast<std::size_t>(i)] = out.stride(i + 1);
  }
  --out.rank;
  return out;
}

TensorView slice(const TensorView& tensor, int dim, std::int64_t begin, std::int64_t end) {
  TensorView out = tensor;
  out.data = static_cast<std::byte*>(tensor.data) + begin * tensor.stride(dim) * dtype_bytes(tensor.dtype);
  out.shape[static_cast<std::size_t>(dim)] = end - begin;
  return out;
}

TensorView permute(const TensorView& tensor, std::initializer_list<int> order) {
  TensorView out = tensor;
  std::size_t dim = 0;
  for (int source : order) {
    out.shape[dim] = tensor.size(source);
    out.strides[dim] = tensor.stride(source);
    ++dim;
  }
  return out;
}

std::string shape_string(const TensorView& tensor) {
  return tensor.empty() && tensor.rank == 0 ? "none" : join(tensor.shape.data(), tensor.rank);
}

Status check_tensor(const TensorView& tensor, const TensorRequirement& want) {
  const auto wanted_shape = join(want.shape.begin(), static_cast<int>(want.shape.size()));
  if (tensor.rank < 0 || tensor.rank > kMaxRank || static_cast<std::size_t>(tensor.rank) != want.shape.size()) {
    return invalid_argument(argument(want) + ".shape: want " + wanted_shape + ", got rank " +
                            std::to_string(tensor.rank));
  }
  if (std::find(want.dtypes.begin(), want.dtypes.end(), tensor.dtype) == want.dtypes.end()) {
    std::string names;
    for (DType dtype : want.dtypes) names += (names.empty() ? "" : " or ") + std::string(dtype_name(dtype));
    return invalid_argument(argument(want) + ".dtype: want " + names + ", got " +
                            std::string(dtype_name(tensor.dtype)));
  }
  int dim = 0;
  for (std::int64_t size : want.shape) {
    if (size != kAny && tensor.size(dim) != size) {
      return invalid_argument(argument(want) + ".shape: want " + wanted_shape + ", got " + shape_string(tensor));
    }
    ++dim;
  }
  QUIRE_RETURN_IF_ERROR(check_extent(tensor, want));
  const bool has_elements = tensor.num_elements() > 0;
  if (tensor.data == nullptr && has_elements)
    return invalid_argument(argument(want) + ": want data, got a null pointer");
  const auto address = reinterpret_cast<std::uintptr_t>(tensor.data);
  if (address % static_cast<std::uintptr_t>(dtype_bytes(tensor.dtype)) != 0) {
    return invalid_argument(argument(want) + ".data: want an address aligned to " +
                            std::to_string(dtype_bytes(tensor.dtype)) + " bytes, got one that is off by " +
                            std::to_string(address % static_cast<std::uintptr_t>(dtype_bytes(tensor.dtype))));
  }
  if (want.last_dim_contiguous && tensor.rank > 0 && tensor.size(tensor.rank - 1) > 1 &&
      tensor.stride(tensor.rank - 1) != 1) {
    return invalid_argument(argument(want) + ".strides: want 1 in the last dimension, got " +
                            std::to_string(tensor.stride(tensor.rank - 1)));
  }
  return {};
}

Status check_no_overlap(std::string_view name, const TensorView& tensor) {
  std::array<int, kMaxRank> dims{};  // of more than one element, by ascending stride
  std::size_t count = 0;
  for (int dim = 0; dim < tensor.rank && count < dims.size(); ++dim) {
    if (tensor.size(dim) == 0) return {};
    if (tensor.size(dim) == 1) continue;
    std::size_t place = count++;
    for (; place > 0 && tensor.stride(dims[place - 1]) > tensor.stride(dim); --place) dims[place] = dims[place - 1];
    dims[place] = dim;
  }
  std::int64_t extent = 1;
  for (std::size_t i = 0; i < count; ++i) {
    const int dim = dims[i];
    if (tensor.stride(dim) < extent) {
      return invalid_argument(std::string(name) + ".strides: want elements that do not overlap, got shape " +
                              shape_string(tensor) + " with strides " + join(tensor.strides.data(), tensor.rank));
    }
    extent += (tensor.size(dim) - 1) * tensor.stride(dim);
  }
  return {};
}

}  // namespace quire
