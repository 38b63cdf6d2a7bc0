// MappedFile: open, fstat and mmap with readable errors.
#include "io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

namespace quire {
namespace {

std::string errno_text() { return std::generic_category().message(errno); }

Result<std::span<const std::byte>> map_descriptor(int descriptor, const std::string& path) {
  struct stat info {};
  if (fstat(descriptor, &info) != 0) return not_found(path + ": cannot be read: " + errno_text());
  if (!S_ISREG(info.st_mode)) return invalid_argument(path + ": want a regular file");
  if (info.st_size == 0) return std::span<const std::byte>{};
  const auto size = static_cast<std::size_t>(info.st_size);
  void* data = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
  if (data == MAP_FAILED) return resource_exhausted(path + ": cannot be mapped: " + errno_text());
  return std::span<const std::byte>(static_cast<const std::byte*>(data), size);
}

}  // namespace

Result<MappedFile> MappedFile::open(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return not_found(path + ": cannot be opened: " + errno_text());
  auto bytes = map_descriptor(descriptor, path);
  ::close(descriptor);
  if (!bytes.ok()) return bytes.status();
  return MappedFile(*bytes);
}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  return *this;
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

}  // namespace quire
