// BART: an encoder, and a decoder whose layers also attend to the encoder's output.
#pragma once

#include <memory>

#include "models/model.h"

namespace quire {

Result<std::unique_ptr<DecoderModel>> load_bart(LoadContext& context);

}  // namespace quire
