// BLOOM: ALiBi instead of positions in the embedding, and one fused projection.
#pragma once

#include <memory>

#include "models/model.h"

namespace quire {

Result<std::unique_ptr<DecoderModel>> load_bloom(LoadContext& context);

}  // namespace quire
