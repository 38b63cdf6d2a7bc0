// CUDA: what a program needs beside the backends to run them on a GPU, without including a CUDA header.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "quire/attention.h"
#include "quire/kv_cache.h"
#include "quire/status.h"
#include "quire/tensor.h"

namespace quire::cuda {

// Whether this build has the CUDA kernels. Without them every function below returns kUnsupported.
bool is_compiled();

struct DeviceInfo {
  std::string name;
  int major = 0;  // compute capability
  int minor = 0;
  int multiprocessors = 0;
  std::int64_t memory_bytes = 0;
};
// The current device, the one that kernels run on.
Result<DeviceInfo> device_info();

// Waits for the stream (a cudaStream_t) and returns the first fault that a kernel found in metadata on the device since
// the last look: a block id, slot or length out of range, with the request's index. Kernels write nothing for it and
// read nothing outside. Every operation also looks when it is called, without waiting, and then returns the fault of an
// earlier one.
Status check(void* stream);
Status synchronize(void* stream);

// Where a Buffer's memory is: on the device, or on the host and pinned.
enum class MemoryKind : std::uint8_t { kDevice, kPinnedHost };

// Owns memory of a kind.
template <MemoryKind kKind>
class Buffer {
 public:
  Buffer() = default;
  static Result<Buffer> allocate(std::size_t bytes);
  Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer();

  void* data() const { return data_; }
  std::size_t size() const { return size_; }
  std::span<std::byte> bytes() const { return {static_cast<std::byte*>(data_), size_}; }

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};
extern template class Buffer<MemoryKind::kDevice>;
extern template class Buffer<MemoryKind::kPinnedHost>;

using DeviceBuffer = Buffer<MemoryKind::kDevice>;
// What copies do not wait for, and swap_blocks moves blocks to and from in place.
using HostBuffer = Buffer<MemoryKind::kPinnedHost>;

// In the stream's order. The host memory of copy_to_device may be reused when the call returns if it is pageable;
// copy_to_host waits for the copy.
Status copy_to_device(void* device, const void* host, std::size_t bytes, void* stream);
Status copy_to_host(void* host, const void* device, std::size_t bytes, void* stream);
Status fill(void* device, unsigned char value, std::size_t bytes, void* stream);

// The operations of quire/kv_cache.h on device memory, in the stream's order, with the same meaning. What the host
// cannot see (slots, positions) is checked by the kernels: a bad one stores nothing and is a fault that check()
// reports. Two tokens of one call that name the same slot leave either's row.
Status reshape_and_cache_flash(const TensorView& key, const TensorView& value, const KVSource& cache,
                               const TensorView& slot_mapping, void* stream);
Status rope_and_cache_flash(const RopeArgs& rope, const TensorView& key, const TensorView& value, const KVSource& cache,
                            const TensorView& slot_mapping, void* stream);
// Pairs are host memory. Either side of a swap may be on the host: memory that is pinned is read and written in place
// by one launch (for each 128 pairs), other memory is copied block by block.
Status swap_blocks(const KVSource& source, const KVSource& destination, std::span<const BlockPair> pairs, void* stream);
// Caches are on the device. Cycles of 128 blocks and more are kUnsupported.
Status copy_blocks(std::span<const KVSource> caches, std::span<const BlockPair> pairs, void* stream);
Status move_tokens(std::span<const KVSource> caches, std::span<const SlotPair> pairs, void* stream);
Status reset_kv_scales(const KVSource& cache, void* stream);

}  // namespace quire::cuda
