// The version of the library that was built.
#pragma once

namespace quire {

// Returns the library's version as "major.minor.patch"; the text lives as long as the program.
const char* version() noexcept;

}  // namespace quire
