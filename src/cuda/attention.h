// Attention on the device: the entry that the backends call, with the same arguments as the CPU's.
#pragma once

#include <cstddef>
#include <span>

#include "quire/attention.h"
#include "quire/ops.h"
#include "quire/plan.h"
#include "quire/runtime.h"
#include "quire/status.h"

namespace quire::cuda {

// Whether the kernels are in this build and the current device can run them.
Status check_available();

// Scratch bytes on the device that attention() needs; head counts have been checked.
std::size_t attention_workspace_bytes(const AttentionArgs& args, const AttentionPlan& plan, const Runtime& runtime);

// Every pointer of `args`, which have been checked as far as the host can, and the workspace are device memory. The
// plan bounds the batch (query lengths, key lengths, splits): which rows and keys there are is read from
// query_start_loc and seq_lens on the device, so a captured launch may be replayed with other lengths that stay within
// those bounds. Neither allocates nor waits.
Status attention(const AttentionArgs& args, const AttentionPlan& plan, const Runtime& runtime,
                 std::span<std::byte> workspace);

// A checked tensor [tokens, heads, size] of any strides with a contiguous last dimension.
Status fill_with_zeros(const TensorView& output, const Runtime& runtime);

// Brings the log-sum-exps [num_q_heads, num_tokens] of a cascade's prefix, whose linear ALiBi was measured as if all
// rows were one sequence, to each request's own distances. Nothing without ALiBi.
Status shift_prefix_lse(const AttentionArgs& args, std::int32_t prefix_len, const TensorView& lse,
                        const Runtime& runtime);

// Arguments have been checked, except for the tensors' memory, which is the device's.
Status merge_attn_states(const MergeStatesArgs& args, const Runtime& runtime);

}  // namespace quire::cuda
