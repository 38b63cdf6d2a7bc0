// Attention in float64, without tiles, splits or online softmax: the specification that every kernel is compared with.
#pragma once

#include "quire/attention.h"

namespace quire::reference {

// Writes args.output (quantised where args says so) and args.lse. Arguments have passed validation.
void attention(const AttentionArgs& args);

// The same before rounding and output quantisation: out [num_tokens, num_q_heads, head_size_v] contiguous,
// lse [num_q_heads, num_tokens] contiguous or null.
void attention_double(const AttentionArgs& args, double* out, double* lse);

}  // namespace quire::reference
