// write_whole_file: a file that is there completely or not at all, also when the process is killed while it writes.
#pragma once

#include <string>
#include <string_view>

#include "quire/status.h"

namespace quire {

// Writes `path`.partial, which then takes the name. Errors: kNotFound where the folder does not let it.
Status write_whole_file(const std::string& path, std::string_view bytes);

}  // namespace quire
