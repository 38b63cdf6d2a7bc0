// GuardedBuffer: memory with known bytes before and behind it, so that a test sees every write outside.
#pragma once

#include <cstddef>
#include <cstring>
#include <new>
#include <span>

namespace quire::testing {

class GuardedBuffer {
 public:
  explicit GuardedBuffer(std::size_t bytes = 0, unsigned char fill = 0xcd) : bytes_(bytes) {
    block_ = static_cast<unsigned char*>(::operator new (total(), std::align_val_t{kAlignment}));
    std::memset(block_, kGuardByte, total());
    std::memset(block_ + kGuard, fill, bytes);
  }
  GuardedBuffer(GuardedBuffer&& other) noexcept : block_(other.block_), bytes_(other.bytes_) { other.block_ = nullptr; }
  GuardedBuffer& operator=(GuardedBuffer&& other) noexcept {
    std::swap(block_, other.block_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~GuardedBuffer() {
    if (block_ != nullptr) ::operator delete (block_, std::align_val_t{kAlignment});
  }

  template <class T = void>
  T* data() const {
    return reinterpret_cast<T*>(block_ + kGuard);
  }
  std::size_t size() const { return bytes_; }
  std::span<std::byte> bytes() const { return {data<std::byte>(), bytes_}; }

  // Whether no guard byte has changed.
  bool is_intact() const {
    for (std::size_t i = 0; i < kGuard; ++i) {
      if (block_[i] != kGuardByte || block_[kGuard + bytes_ + i] != kGuardByte) return false;
    }
    return true;
  }

 private:
  static constexpr std::size_t kAlignment = 64;
  static constexpr std::size_t kGuard = 256;
  static constexpr unsigned char kGuardByte = 0xa5;

  std::size_t total() const { return bytes_ + 2 * kGuard; }

  unsigned char* block_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace quire::testing
