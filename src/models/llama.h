// The Llama family: Llama, Mistral, Qwen2 and Qwen3, which differ in biases, head norms and windows.
#pragma once

#include <memory>

#include "models/model.h"

namespace quire {

Result<std::unique_ptr<DecoderModel>> load_llama(LoadContext& context);

}  // namespace quire
