// Paged attention on the CPU: the entry that the operations call, with its scratch size.
#pragma once

#include <cstddef>
#include <span>

#include "quire/attention.h"
#include "quire/plan.h"
#include "quire/runtime.h"
#include "quire/status.h"

namespace quire::cpu {

// Bytes of scratch that attention() needs with the same arguments; any alignment will do.
std::size_t attention_workspace_bytes(const AttentionArgs& args, const AttentionPlan& plan, const Runtime& runtime);

// Writes args.output (and args.lse) for all rows of the plan. `args` has passed validation and `plan` was made from the
// same lengths. A row's result has the same bits for any thread count, batch and chunking of its prompt, as long as
// each item of the plan that leaves a partial covers one split. Errors: an ISA that this processor or build lacks,
// dtypes that the kernels do not know, a workspace that is too small.
Status attention(const AttentionArgs& args, const AttentionPlan& plan, const Runtime& runtime,
                 std::span<std::byte> workspace);

}  // namespace quire::cpu
