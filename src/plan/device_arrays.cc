// Copies the arrays of metadata to the device, packed into one transfer.
#include "plan/device_arrays.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>

namespace quire {
namespace {

constexpr std::size_t kAlign = 16;
constexpr std::size_t kSmallest = std::size_t{64} << 10;

// Where each array begins in the one piece of memory.
struct Layout {
  explicit Layout(const ArrayRoom& room) {
    const auto place = [&](std::size_t count, std::size_t element_bytes) {
      const std::size_t begin = bytes;
      bytes += (count * element_bytes + kAlign - 1) / kAlign * kAlign;
      return begin;
    };
    starts = place(room.starts, sizeof(std::int32_t));
    lengths = place(room.lengths, sizeof(std::int32_t));
    causal = place(room.causal, sizeof(std::uint8_t));
    ranges = place(room.ranges, sizeof(std::int32_t));
    tree_sizes = place(room.trees, sizeof(std::int32_t));
    mask_offsets = place(room.trees, sizeof(std::int64_t));
    masks = place(room.masks, sizeof(std::uint64_t));
    bias_offsets = place(room.biases == 0 ? 0 : room.trees, sizeof(std::int64_t));
    biases = place(room.biases, sizeof(float));
  }

  std::size_t bytes = 0;
  std::size_t starts = 0;
  std::size_t lengths = 0;
  std::size_t causal = 0;
  std::size_t ranges = 0;
  std::size_t tree_sizes = 0;
  std::size_t mask_offsets = 0;
  std::size_t masks = 0;
  std::size_t bias_offsets = 0;
  std::size_t biases = 0;
};

template <class T>
const T* array_at(const cuda::DeviceBuffer& buffer, std::size_t offset, std::size_t count) {
  return count == 0 ? nullptr : reinterpret_cast<const T*>(buffer.bytes().data() + offset);
}

TensorView view_of(const cuda::DeviceBuffer& buffer, std::size_t offset, std::size_t count) {
  TensorView view;
  if (count == 0) return view;
  view.data = buffer.bytes().data() + offset;
  view.dtype = DType::kInt32;
  view.device = {DeviceType::kCuda, 0};
  view.rank = 1;
  view.shape = {static_cast<std::int64_t>(count)};
  view.strides = {1};
  return view;
}

ArrayRoom room_of(const AttentionMetadata& metadata, ArrayUse use) {
  ArrayRoom room{.starts = metadata.query_start_loc_device.empty() ? metadata.query_start_loc.size() : 0,
                 .lengths = metadata.seq_lens_device.empty() ? metadata.seq_lens.size() : 0,
                 .causal = metadata.causal_per_seq.size(),
                 .ranges = metadata.mm_prefix_ranges.size(),
                 .trees = metadata.tree_sizes.size(),
                 .masks = metadata.tree_masks.size(),
                 .biases = metadata.tree_biases.size()};
  if (use == ArrayUse::kReplaysWithTrees) room.trees = static_cast<std::size_t>(metadata.num_reqs);
  if (use != ArrayUse::kOneStep && room.trees > 0) {
    const auto rows = static_cast<std::size_t>(std::max(metadata.max_query_len, 1));
    room.masks = room.trees * rows * ((rows + 63) / 64);
    if (room.biases > 0) room.biases = room.trees * rows * rows;
  }
  return room;
}

Status too_much(std::string_view what, std::size_t most, std::size_t got) {
  return out_of_range("common." + std::string(what) + ": want at most " + std::to_string(most) +
                      ", as the graph was captured with, got " + std::to_string(got));
}

Status check_room(const AttentionMetadata& captured, const AttentionMetadata& step) {
  const ArrayRoom& room = captured.device_arrays->room();
  const auto check = [](std::string_view what, std::size_t most, std::size_t got) {
    return got <= most ? Status() : too_much(what, most, got);
  };
  const auto count = [](std::int32_t value) { return static_cast<std::size_t>(value); };
  QUIRE_RETURN_IF_ERROR(check("num_reqs", count(captured.num_reqs), count(step.num_reqs)));
  QUIRE_RETURN_IF_ERROR(check("max_query_len", count(captured.max_query_len), count(step.max_query_len)));
  QUIRE_RETURN_IF_ERROR(check("trees", room.trees, step.tree_sizes.size()));
  QUIRE_RETURN_IF_ERROR(check("trees: words of masks", room.masks, step.tree_masks.size()));
  QUIRE_RETURN_IF_ERROR(check("trees: elements of biases", room.biases, step.tree_biases.size()));
  QUIRE_RETURN_IF_ERROR(
      check("mm_ranges: ranges of a request", count(captured.mm_prefix_max_ranges), count(step.mm_prefix_max_ranges)));
  if (room.causal > 0 || (step.causal_per_seq.empty() && step.causal == captured.causal)) return {};
  return out_of_range("common.causal: want what the graph was captured with, which had no causal_per_seq");
}

// The ranges of the step's requests in rows of `width` ranges.
std::vector<std::int32_t> widen_ranges(const AttentionMetadata& step, std::int32_t width, std::size_t num_reqs) {
  const auto from = static_cast<std::size_t>(step.mm_prefix_max_ranges) * 2;
  const auto to = static_cast<std::size_t>(width) * 2;
  std::vector<std::int32_t> ranges(num_reqs * to, 0);
  for (std::size_t req = 0; from > 0 && req < static_cast<std::size_t>(step.num_reqs); ++req) {
    std::copy_n(step.mm_prefix_ranges.data() + req * from, from, ranges.data() + req * to);
  }
  return ranges;
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

Status DeviceArrays::upload(const AttentionMetadata& metadata) const {
  const Layout layout(room_);
  if (layout.bytes == 0) return {};
  std::vector<std::byte> image(layout.bytes);
  const auto put = [&](std::size_t offset, std::size_t room, const auto& values) {
    if (room > 0 && !values.empty()) {
      std::memcpy(image.data() + offset, values.data(), std::min(room, values.size()) * sizeof(values[0]));
    }
  };
  put(layout.starts, room_.starts, metadata.query_start_loc);
  put(layout.lengths, room_.lengths, metadata.seq_lens);
  put(layout.causal, room_.causal, metadata.causal_per_seq);
  put(layout.ranges, room_.ranges, metadata.mm_prefix_ranges);
  put(layout.tree_sizes, room_.trees, metadata.tree_sizes);
  put(layout.mask_offsets, room_.trees, metadata.tree_mask_offsets);
  put(layout.masks, room_.masks, metadata.tree_masks);
  put(layout.bias_offsets, room_.biases == 0 ? 0 : room_.trees, metadata.tree_bias_offsets);
  put(layout.biases, room_.biases, metadata.tree_biases);
  return cuda::copy_to_device(buffer_.data(), image.data(), image.size(), pool_->stream());
}

void DeviceArrays::bind(Variant& variant) const {
  const Layout layout(room_);
  variant.causal_per_seq = array_at<std::uint8_t>(buffer_, layout.causal, room_.causal);
  variant.mm_prefix_ranges = array_at<std::int32_t>(buffer_, layout.ranges, room_.ranges);
  variant.mm_prefix_max_ranges = max_ranges_;
  variant.tree = {.size = array_at<std::int32_t>(buffer_, layout.tree_sizes, room_.trees),
                  .mask_offset = array_at<std::int64_t>(buffer_, layout.mask_offsets, room_.trees),
                  .mask = array_at<std::uint64_t>(buffer_, layout.masks, room_.masks),
                  .bias_offset = array_at<std::int64_t>(buffer_, layout.bias_offsets, room_.biases),
                  .bias = array_at<float>(buffer_, layout.biases, room_.biases)};
}

TensorView DeviceArrays::starts() const { return view_of(buffer_, Layout(room_).starts, room_.starts); }

TensorView DeviceArrays::lengths() const { return view_of(buffer_, Layout(room_).lengths, room_.lengths); }

Status place_on_device(AttentionMetadata& metadata, const std::shared_ptr<DevicePool>& pool, ArrayUse use) {
  const ArrayRoom room = room_of(metadata, use);
  QUIRE_ASSIGN_OR_RETURN(cuda::DeviceBuffer buffer, pool->take(Layout(room).bytes));
  const auto arrays = std::make_shared<DeviceArrays>(pool, std::move(buffer), room);
  arrays->max_ranges_ = room.ranges == 0 ? 0 : metadata.mm_prefix_max_ranges;
  QUIRE_RETURN_IF_ERROR(arrays->upload(metadata));
  if (room.starts > 0) metadata.query_start_loc_device = arrays->starts();
  if (room.lengths > 0) metadata.seq_lens_device = arrays->lengths();
  metadata.device_arrays = arrays;
  return {};
}

Status replace_on_device(const AttentionMetadata& captured, AttentionMetadata step) {
  if (captured.device_arrays == nullptr) {
    return invalid_argument("captured: want metadata of build_for_cudagraph_capture on a device, got it on the host");
  }
  QUIRE_RETURN_IF_ERROR(check_room(captured, step));
  const auto num_reqs = static_cast<std::size_t>(captured.num_reqs);
  if (step.causal_per_seq.empty()) step.causal_per_seq.assign(static_cast<std::size_t>(step.num_reqs), step.causal);
  step.causal_per_seq.resize(num_reqs, 1);
  step.mm_prefix_ranges = widen_ranges(step, captured.mm_prefix_max_ranges, num_reqs);
  step.query_start_loc.resize(num_reqs + 1, step.query_start_loc.back());
  step.seq_lens.resize(num_reqs, 0);
  return captured.device_arrays->upload(step);
}

}  // namespace quire
