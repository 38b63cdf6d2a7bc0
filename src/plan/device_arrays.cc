// Copies the arrays of metadata to the device, packed into one transfer.
#include "plan/device_arrays.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace quire {
namespace {

constexpr std::size_t kAlign = 16;
constexpr std::size_t kSmallest = std::size_t{64} << 10;

// The arrays in one image of what the device gets.
class Packer {
 public:
  // Where `values` will be: an offset, or kNone for an empty array.
  template <class T>
  std::size_t add(const std::vector<T>& values) {
    if (values.empty()) return kNone;
    const std::size_t offset = (image_.size() + kAlign - 1) / kAlign * kAlign;
    image_.resize(offset + values.size() * sizeof(T));
    std::memcpy(image_.data() + offset, values.data(), values.size() * sizeof(T));
    return offset;
  }
  const std::vector<std::byte>& image() const { return image_; }

  static constexpr std::size_t kNone = ~std::size_t{0};

 private:
  std::vector<std::byte> image_;
};

// The place of an array on the device.
template <class T>
const T* at(const cuda::DeviceBuffer& buffer, std::size_t offset) {
  return offset == Packer::kNone ? nullptr : reinterpret_cast<const T*>(buffer.bytes().data() + offset);
}

TensorView view_of(const cuda::DeviceBuffer& buffer, std::size_t offset, std::size_t count) {
  TensorView view;
  view.data = buffer.bytes().data() + offset;
  view.dtype = DType::kInt32;
  view.device = {DeviceType::kCuda, 0};
  view.rank = 1;
  view.shape = {static_cast<std::int64_t>(count)};
  view.strides = {1};
  return view;
}

}  // namespace

Result<cuda::DeviceBuffer> DevicePool::take(std::size_t bytes) {
  if (bytes == 0) return cuda::DeviceBuffer();
  {
    const std::lock_guard lock(mutex_);
    const auto found =
        std::find_if(free_.begin(), free_.end(), [&](const auto& buffer) { return buffer.size() >= bytes; });
    if (found != free_.end()) {
      cuda::DeviceBuffer buffer = std::move(*found);
      free_.erase(found);
      return buffer;
    }
  }
  return cuda::DeviceBuffer::allocate(std::bit_ceil(std::max(bytes, kSmallest)));
}

void DevicePool::give_back(cuda::DeviceBuffer buffer) {
  if (buffer.size() == 0) return;
  const std::lock_guard lock(mutex_);
  free_.push_back(std::move(buffer));
}

void DeviceArrays::bind(Variant& variant) const {
  variant.causal_per_seq = terms_.causal_per_seq;
  variant.mm_prefix_ranges = terms_.mm_prefix_ranges;
  variant.mm_prefix_max_ranges = terms_.mm_prefix_max_ranges;
  variant.tree = terms_.tree;
}

Status place_on_device(AttentionMetadata& metadata, const std::shared_ptr<DevicePool>& pool) {
  Packer packer;
  const bool starts_given = !metadata.query_start_loc_device.empty();
  const bool lengths_given = !metadata.seq_lens_device.empty();
  const std::size_t starts = starts_given ? Packer::kNone : packer.add(metadata.query_start_loc);
  const std::size_t lengths = lengths_given ? Packer::kNone : packer.add(metadata.seq_lens);
  const std::size_t causal = packer.add(metadata.causal_per_seq);
  const std::size_t ranges = packer.add(metadata.mm_prefix_ranges);
  const std::size_t sizes = packer.add(metadata.tree_sizes);
  const std::size_t mask_offsets = packer.add(metadata.tree_mask_offsets);
  const std::size_t masks = packer.add(metadata.tree_masks);
  const std::size_t bias_offsets = packer.add(metadata.tree_bias_offsets);
  const std::size_t biases = packer.add(metadata.tree_biases);
  const std::vector<std::byte>& image = packer.image();
  QUIRE_ASSIGN_OR_RETURN(cuda::DeviceBuffer buffer, pool->take(image.size()));
  if (!image.empty()) {
    QUIRE_RETURN_IF_ERROR(cuda::copy_to_device(buffer.data(), image.data(), image.size(), pool->stream()));
  }
  if (starts != Packer::kNone) {
    metadata.query_start_loc_device = view_of(buffer, starts, metadata.query_start_loc.size());
  }
  if (lengths != Packer::kNone) metadata.seq_lens_device = view_of(buffer, lengths, metadata.seq_lens.size());
  Variant terms;
  terms.causal_per_seq = at<std::uint8_t>(buffer, causal);
  terms.mm_prefix_ranges = at<std::int32_t>(buffer, ranges);
  terms.mm_prefix_max_ranges = terms.mm_prefix_ranges == nullptr ? 0 : metadata.mm_prefix_max_ranges;
  terms.tree = {.size = at<std::int32_t>(buffer, sizes),
                .mask_offset = at<std::int64_t>(buffer, mask_offsets),
                .mask = at<std::uint64_t>(buffer, masks),
                .bias_offset = at<std::int64_t>(buffer, bias_offsets),
                .bias = at<float>(buffer, biases)};
  metadata.device_arrays = std::make_shared<const DeviceArrays>(pool, std::move(buffer), terms);
  return {};
}

}  // namespace quire
