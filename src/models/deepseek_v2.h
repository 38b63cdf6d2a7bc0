// DeepSeek-V2: low-rank queries, keys and values, decompressed to keys that are wider than the values; dense MLPs.
#pragma once

#include <memory>

#include "models/model.h"

namespace quire {

Result<std::unique_ptr<DecoderModel>> load_deepseek_v2(LoadContext& context);

}  // namespace quire
