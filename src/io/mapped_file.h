// MappedFile: a whole file mapped read-only into memory, unmapped when the object goes away.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "quire/status.h"

namespace quire {

// The bytes stay valid while the object lives and nobody shortens the file. Writing through them is a fault.
class MappedFile {
 public:
  // Errors: kNotFound if the file cannot be opened, kInvalidArgument if it is not a regular file. An empty file is
  // fine.
  static Result<MappedFile> open(const std::string& path);

  MappedFile(MappedFile&& other) noexcept : bytes_(other.bytes_) { other.bytes_ = {}; }
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  explicit MappedFile(std::span<const std::byte> bytes) : bytes_(bytes) {}
  std::span<const std::byte> bytes_;
};

}  // namespace quire
