// DeviceArrays: the device's copies of what a metadata keeps on the host, in one piece of memory from a builder's pool.
#pragma once

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

class DeviceArrays {
 public:
  DeviceArrays(std::shared_ptr<DevicePool> pool, cuda::DeviceBuffer buffer, const Variant& terms)
      : pool_(std::move(pool)), buffer_(std::move(buffer)), terms_(terms) {}
  DeviceArrays(const DeviceArrays&) = delete;
  DeviceArrays& operator=(const DeviceArrays&) = delete;
  ~DeviceArrays() { pool_->give_back(std::move(buffer_)); }

  const std::shared_ptr<DevicePool>& pool() const { return pool_; }
  // Sets the pointers of the terms that belong to the batch.
  void bind(Variant& variant) const;

 private:
  std::shared_ptr<DevicePool> pool_;
  cuda::DeviceBuffer buffer_;
  Variant terms_;
};

// Copies what layers read of `metadata` to the device: lengths that the caller has not put there, and the terms of the
// batch.
Status place_on_device(AttentionMetadata& metadata, const std::shared_ptr<DevicePool>& pool);

}  // namespace quire
