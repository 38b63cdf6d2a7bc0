// GPT-OSS: attention sinks, alternating windows and a mixture of experts.
#pragma once

#include <memory>

#include "models/model.h"

namespace quire {

Result<std::unique_ptr<DecoderModel>> load_gpt_oss(LoadContext& context);

}  // namespace quire
