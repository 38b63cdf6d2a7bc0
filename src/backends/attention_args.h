// Checks of prepared attention arguments, shared by the operations.
#pragma once

#include "quire/attention.h"
#include "quire/plan.h"
#include "quire/status.h"

namespace quire::backends {

// Head counts and head sizes.
Status check_counts(const AttentionArgs& args);
// The batch and its terms, no tensor: head counts, lengths, block ids, term arrays.
Status check_batch(const AttentionArgs& args);
// Everything the host can see: pointers, alignment, dtypes, head counts, lengths, block ids, term arrays.
Status check_attention_args(const AttentionArgs& args);
// The same of arguments whose arrays are on a device: what they point to is checked by the kernels.
Status check_device_args(const AttentionArgs& args);
// Work items and merges inside the lengths and inside the partial slots that the plan declares.
Status check_plan(const AttentionArgs& args, const AttentionPlan& plan);

}  // namespace quire::backends
