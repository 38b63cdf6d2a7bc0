// Implements write_whole_file.
#include "io/whole_file.h"

#include <cstdio>
#include <fstream>

namespace quire {

Status write_whole_file(const std::string& path, std::string_view bytes) {
  const std::string partial = path + ".partial";
  std::ofstream out(partial, std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  out.close();
  if (!out || std::rename(partial.c_str(), path.c_str()) != 0) {
    std::remove(partial.c_str());
    return not_found(path + ": cannot be written");
  }
  return {};
}

}  // namespace quire
