// DeviceArrays: the device's copies of what a metadata keeps on the host, in one piece of memory from a builder's pool.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "quire/cuda.h"
#include "quire/metadata.h"

namespace quire {

// Device memory for the arrays of metadata, used again from step to step, so that a step allocates nothing once the
// largest batch has been seen. Uploads and the layers that read them are in the order of one stream, which is what
// makes it safe to use a piece again while kernels of an earlier step may still run.
class DevicePool {
 public:
  explicit DevicePool(void* stream) : stream_(stream) {}

  void* stream() const { return stream_; }
  Result<cuda::DeviceBuffer> take(std::size_t bytes);
  void give_back(cuda::DeviceBuffer buffer);

 private:
  void* stream_;
  std::mutex mutex_;
  std::vector<cuda::DeviceBuffer> free_;
};

// How many elements each array of a metadata has room for on the device; 0: it is not there.
struct ArrayRoom {
  std::size_t starts = 0;
  std::size_t lengths = 0;
  std::size_t causal = 0;
  std::size_t ranges = 0;
  std::size_t trees = 0;
  std::size_t masks = 0;
  std::size_t biases = 0;
};

// What is to be replayed from a graph finds its arrays where they were when it was captured, and they have room for any
// batch within the capture's num_reqs and max_query_len.
enum class ArrayUse : std::uint8_t { kOneStep, kReplays, kReplaysWithTrees };

class DeviceArrays {
 public:
  DeviceArrays(std::shared_ptr<DevicePool> pool, cuda::DeviceBuffer buffer, const ArrayRoom& room)
      : pool_(std::move(pool)), buffer_(std::move(buffer)), room_(room) {}
  DeviceArrays(const DeviceArrays&) = delete;
  DeviceArrays& operator=(const DeviceArrays&) = delete;
  ~DeviceArrays() { pool_->give_back(std::move(buffer_)); }

  const std::shared_ptr<DevicePool>& pool() const { return pool_; }
  const ArrayRoom& room() const { return room_; }
  // Copies the arrays of `metadata`, which fit the room.
  Status upload(const AttentionMetadata& metadata) const;
  // Sets the pointers of the terms that belong to the batch.
  void bind(Variant& variant) const;
  // Where the device finds the lengths that the caller has not put there; empty where it has.
  TensorView starts() const;
  TensorView lengths() const;

 private:
  friend Status place_on_device(AttentionMetadata&, const std::shared_ptr<DevicePool>&, ArrayUse);

  std::shared_ptr<DevicePool> pool_;
  cuda::DeviceBuffer buffer_;
  ArrayRoom room_;
  std::int32_t max_ranges_ = 0;  // of a request
};

// Copies what layers read of `metadata` to the device: lengths that the caller has not put there, and the terms of the
// batch.
Status place_on_device(AttentionMetadata& metadata, const std::shared_ptr<DevicePool>& pool,
                       ArrayUse use = ArrayUse::kOneStep);

// Puts the arrays of `step` where `captured`, which was placed for replays, has its own. Requests that the step does
// not have are padding. Errors name what the capture has no room for.
Status replace_on_device(const AttentionMetadata& captured, AttentionMetadata step);

}  // namespace quire
