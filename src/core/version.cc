// Holds the version text that the build passes in.
#include "quire/version.h"

namespace quire {

const char* version() noexcept { return QUIRE_VERSION; }

}  // namespace quire
