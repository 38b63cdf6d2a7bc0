// DiffLlama: Llama with differential attention.
#pragma once

#include <memory>

#include "models/model.h"

namespace quire {

Result<std::unique_ptr<DecoderModel>> load_diff_llama(LoadContext& context);

}  // namespace quire
