// RowBuffer: an aligned, zero-filled matrix of activations whose rows are padded, so that linear layers may work in
// whole tiles of rows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

#include "core/checked.h"
#include "quire/dtype.h"
#include "quire/tensor.h"

namespace quire {

// Buffers hold a multiple of this many rows; a linear layer never touches more rows than the next multiple.
inline constexpr std::int64_t kRowPadding = 256;

// Rows of `width` elements, one after the other. A view, or the part of one.
struct Rows {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  std::int64_t width = 0;

  template <class T>
  T* row(std::int64_t index) const {
    return static_cast<T*>(data) + index * width;
  }
  // The view that starts `count` rows further on.
  Rows from(std::int64_t count) const {
    return {static_cast<std::byte*>(data) + count * width * dtype_bytes(dtype), dtype, width};
  }
  // [num_rows, heads, head_size] starting at element `offset` of each row.
  TensorView heads(std::int64_t num_rows, std::int64_t offset, std::int64_t num_heads, std::int64_t head_size) const {
    TensorView view;
    view.data = static_cast<std::byte*>(data) + offset * dtype_bytes(dtype);
    view.dtype = dtype;
    view.rank = 3;
    view.shape = {num_rows, num_heads, head_size};
    view.strides = {width, head_size, 1};
    return view;
  }
};

class RowBuffer {
 public:
  RowBuffer() = default;
  RowBuffer(std::int64_t rows, std::int64_t width, DType dtype) : dtype_(dtype), width_(width) {
    const auto bytes = static_cast<std::size_t>(round_up(rows, kRowPadding) * width * dtype_bytes(dtype));
    data_.reset(static_cast<std::byte*>(::operator new (bytes + 1, std::align_val_t{64})));
    std::memset(data_.get(), 0, bytes);
  }

  Rows rows() const { return {data_.get(), dtype_, width_}; }
  float* floats() const { return reinterpret_cast<float*>(data_.get()); }

 private:
  struct Free {
    void operator()(std::byte* data) const { ::operator delete (data, std::align_val_t{64}); }
  };
  std::unique_ptr<std::byte[], Free> data_;
  DType dtype_ = DType::kFloat32;
  std::int64_t width_ = 0;
};

}  // namespace quire
