// GuardedBuffer: aligned memory between two guard zones whose bytes tell whether somebody wrote outside.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <span>

namespace quire::cli {

class GuardedBuffer {
 public:
  static constexpr std::size_t kGuardBytes = 256;
  static constexpr std::byte kPattern{0xA5};  // also the first contents of the buffer

  explicit GuardedBuffer(std::size_t bytes)
      : size_(bytes),
        total_((2 * kGuardBytes + bytes + kAlign - 1) / kAlign * kAlign),
        memory_(static_cast<std::byte*>(std::aligned_alloc(kAlign, total_))) {
    if (memory_) std::fill_n(memory_.get(), total_, kPattern);
  }

  bool ok() const { return memory_ != nullptr; }
  std::byte* data() { return memory_.get() + kGuardBytes; }
  const std::byte* data() const { return memory_.get() + kGuardBytes; }
  std::span<std::byte> bytes() { return {data(), size_}; }
  std::span<const std::byte> bytes() const { return {data(), size_}; }
  // The guards too.
  std::span<std::byte> whole() { return {memory_.get(), total_}; }

  bool guards_intact() const {
    const auto untouched = [](std::byte byte) { return byte == kPattern; };
    const std::byte* begin = memory_.get();
    return std::all_of(begin, data(), untouched) && std::all_of(data() + size_, begin + total_, untouched);
  }

 private:
  static constexpr std::size_t kAlign = 64;
  struct Free {
    void operator()(std::byte* pointer) const { std::free(pointer); }
  };
  std::size_t size_;
  std::size_t total_;
  std::unique_ptr<std::byte[], Free> memory_;
};

}  // namespace quire::cli
