// Operations below the backends: attention on prepared arguments, merging of attention states, cascade attention.
#pragma once

#include <cstddef>
#include <span>

#include "quire/attention.h"
#include "quire/plan.h"
#include "quire/runtime.h"
#include "quire/status.h"
#include "quire/tensor.h"

namespace quire {

// Scratch bytes that paged_attention needs.
std::size_t attention_workspace_bytes(const AttentionArgs& args, const AttentionPlan& plan, const Runtime& runtime);

// Runs attention. Pointers and strides in `args` are checked as far as they can be (null, alignment, head counts,
// dtypes, lengths against the block table, block ids against num_blocks); `plan` was made from the same lengths.
Status paged_attention(const AttentionArgs& args, const AttentionPlan& plan, const Runtime& runtime,
                       std::span<std::byte> workspace);

// Two attention results over disjoint keys of the same queries become one (SPEC 3.6).
struct MergeStatesArgs {
  TensorView prefix_output;  // [num_tokens, num_heads, head_size_v] float32, float16 or bfloat16
  TensorView prefix_lse;     // float32 [num_heads, num_tokens]
  TensorView suffix_output;
  TensorView suffix_lse;
  TensorView output;      // the inputs' dtype, or float8_e4m3 with output_scale
  TensorView output_lse;  // optional float32 [num_heads, num_tokens]
  float output_scale = 0.0f;
  std::int64_t prefill_tokens_with_context = -1;  // tokens from here on take the suffix as it is; -1: all merge
};
// +inf in an lse counts as -inf; rows where both are -inf give output 0 and lse -inf.
Status merge_attn_states(const MergeStatesArgs& args, const Runtime& runtime);

// Attention of requests that share their first `common_prefix_len` keys (same blocks): the prefix once for all rows,
// the suffixes apart, merged. Same result as paged_attention to rounding. Sinks count once (with the suffix). The
// prefix must lie before every query and may not be cut by a window or chunk; output and lse as in paged_attention.
Status cascade_attention(const AttentionArgs& args, std::int32_t common_prefix_len, const Runtime& runtime,
                         std::span<std::byte> workspace);
std::size_t cascade_workspace_bytes(const AttentionArgs& args, std::int32_t common_prefix_len, const Runtime& runtime);

}  // namespace quire
