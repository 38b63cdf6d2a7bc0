// Rotary embedding of one token's rows, in place.
#pragma once

#include "kv/store.h"

namespace quire {

// Rotates the first rotary_dim elements of every head of row `token` by the angle of positions[token]. The arithmetic
// is float32, each result is rounded to `dtype` once.
void rotate_token(const RopeStoreArgs& rope, const TokenRows& rows, DType dtype, std::int64_t token);

}  // namespace quire
