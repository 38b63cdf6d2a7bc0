// TensorView: a strided view of memory that somebody else owns, with the fields of a DLPack tensor.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "quire/device.h"
#include "quire/dtype.h"
#include "quire/status.h"

namespace quire {

inline constexpr int kMaxRank = 8;

// "cpu", "cuda:0".
std::string device_name(Device device);

// A view of `rank` dimensions. Strides count elements, may be in any order and may skip memory. A default-made view is
// empty: data is null and rank is 0; optional tensors are passed that way. The view owns nothing.
struct TensorView {
  void* data = nullptr;
  Device device = {};
  DType dtype = DType::kFloat32;
  std::int32_t rank = 0;
  std::array<std::int64_t, kMaxRank> shape{};
  std::array<std::int64_t, kMaxRank> strides{};

  bool empty() const { return data == nullptr; }
  explicit operator bool() const { return data != nullptr; }
  std::int64_t size(int dim) const { return shape[static_cast<std::size_t>(dim)]; }
  std::int64_t stride(int dim) const { return strides[static_cast<std::size_t>(dim)]; }
  // Product of the shape; 1 for rank 0. The view must have passed check_tensor or come from make_tensor.
  std::int64_t num_elements() const;
  // Elements from the first to the last one that any index reaches, inclusive; 0 if the view has no element.
  std::int64_t extent_elements() const;
  bool is_contiguous() const;

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

// A row-major view of `data`. Rank and shape are checked (rank <= kMaxRank, sizes >= 0, product fits 63 bits).
Result<TensorView> make_tensor(void* data, DType dtype, std::initializer_list<std::int64_t> shape, Device device = {});

// The view of index `index` along `dim`, one rank less; the caller guarantees 0 <= index < size(dim).
TensorView select(const TensorView& tensor, int dim, std::int64_t index);
// The view of [begin, end) along `dim`; the caller guarantees 0 <= begin <= end <= size(dim).
TensorView slice(const TensorView& tensor, int dim, std::int64_t begin, std::int64_t end);
// The view whose dimension i is dimension order[i] of `tensor`.
TensorView permute(const TensorView& tensor, std::initializer_list<int> order);

// "[4, 16, 8, 128]" or "none".
std::string shape_string(const TensorView& tensor);

// What check_tensor asks of a tensor. A size of kAny matches every size.
inline constexpr std::int64_t kAny = -1;
struct TensorRequirement {
  std::string_view name;  // the argument's name in messages
  std::initializer_list<DType> dtypes;
  std::initializer_list<std::int64_t> shape;
  bool last_dim_contiguous = true;
};

// Errors unless the tensor is there, has one of the dtypes and the shape, is aligned to its element, has non-negative
// strides whose extent fits 63 bits, and (if asked) a last stride of 1. Messages hold name, wanted and got.
Status check_tensor(const TensorView& tensor, const TensorRequirement& want);

// Errors if two indices of the view may reach the same element, as they must not where the view is written. Strides
// must nest: each is at least the extent of all smaller ones, as in every permuted, sliced or padded buffer.
Status check_no_overlap(std::string_view name, const TensorView& tensor);

}  // namespace quire
