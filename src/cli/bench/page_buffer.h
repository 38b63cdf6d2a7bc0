// PageBuffer: zeroed memory straight from the system, on huge pages where it gives them.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <span>
#include <utility>

namespace quire::cli {

class PageBuffer {
 public:
  PageBuffer() = default;
  // Empty if the system has no memory.
  explicit PageBuffer(std::size_t bytes) : bytes_(bytes > 0 ? bytes : 1) {
    void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return;
    data_ = static_cast<std::byte*>(memory);
    madvise(memory, bytes_, MADV_HUGEPAGE);
  }
  PageBuffer(PageBuffer&& other) noexcept { swap(other); }
  PageBuffer& operator=(PageBuffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~PageBuffer() {
    if (data_ != nullptr) munmap(data_, bytes_);
  }

  std::byte* data() const { return data_; }
  std::span<std::byte> bytes() const { return {data_, data_ == nullptr ? 0 : bytes_}; }

 private:
  void swap(PageBuffer& other) {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace quire::cli
