// Gemma-2: softcapped logits, alternating windows and norms on both sides of each block.
#pragma once

#include <memory>

#include "models/model.h"

namespace quire {

Result<std::unique_ptr<DecoderModel>> load_gemma2(LoadContext& context);

}  // namespace quire
