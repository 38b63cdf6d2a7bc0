// MPT: ALiBi in its own form, one fused projection, no biases.
#pragma once

#include <memory>

#include "models/model.h"

namespace quire {

Result<std::unique_ptr<DecoderModel>> load_mpt(LoadContext& context);

}  // namespace quire
