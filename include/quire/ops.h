// Operations below the backends: attention on prepared arguments, merging of attention states, cascade attention.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "quire/attention.h"
#include "quire/plan.h"
#include "quire/runtime.h"
#include "quire/status.h"
#include "quire/tensor.h"

namespace quire {

// Scratch bytes that paged_attention needs.
std::size_t attention_workspace_bytes(const AttentionArgs& args, const AttentionPlan& plan, const Runtime& runtime);

// Whether kernels of the runtime's backplane are in this build and can run here; kUnsupported says what is missing.
Status check_backplane(const Runtime& runtime);

// Runs attention. Pointers and strides in `args` are checked as far as they can be (null, alignment, head counts,
// dtypes, lengths, block ids against num_blocks, work items against lengths); `plan` was made from the same lengths.
// `workspace` is aligned to 64 bytes. Never allocates or locks on a CPU.
Status paged_attention(const AttentionArgs& args, const AttentionPlan& plan, const Runtime& runtime,
                       std::span<std::byte> workspace);

// Two attention results over disjoint keys of the same queries become one (docs/semantics.md 3.6).
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

// Attention of requests that share their first `common_prefix_len` keys (the same blocks): the prefix once for all
// rows, the suffixes apart, merged by their log-sum-exp. Same result as paged_attention to rounding; sinks count once.
// The plan is made once a step from the lengths and terms of `args` and owns its small arrays.
class CascadeDeviceArrays;
struct CascadePlan {
  std::int32_t common_prefix_len = 0;
  std::int32_t first_request = 0;                    // the first with rows; its blocks are read as the prefix
  std::vector<std::int32_t> prefix_query_start_loc;  // [2]: all rows are one sequence
  std::vector<std::int32_t> prefix_seq_lens;         // [1]
  std::vector<std::int32_t> suffix_seq_lens;         // [num_seqs]
  std::vector<std::int32_t> suffix_mm_ranges;        // mm-prefix ranges counted from the end of the prefix
  AttentionPlan prefix;
  AttentionPlan suffix;
  std::shared_ptr<const CascadeDeviceArrays> device_arrays = nullptr;  // from place_cascade_plan
};
// Host arrays only. Errors: a prefix that is not whole blocks, that does not lie before every query, that the requests
// do not share, or that a window or chunk cuts; square-root ALiBi (its prefix logits depend on each row's position);
// differential attention; block-scaled output.
Result<CascadePlan> make_cascade_plan(const AttentionArgs& args, std::int32_t common_prefix_len,
                                      const PlanConfig& config);
// Copies the plan's arrays to the runtime's device; nothing on a CPU. `args` of the calls below point to the device
// then. The lengths are those of the plan: a captured graph is replayed with the same ones.
Status place_cascade_plan(CascadePlan& plan, const Runtime& runtime);
std::size_t cascade_workspace_bytes(const AttentionArgs& args, const CascadePlan& plan, const Runtime& runtime);
// Output and lse as in paged_attention.
Status cascade_attention(const AttentionArgs& args, const CascadePlan& plan, const Runtime& runtime,
                         std::span<std::byte> workspace);

}  // namespace quire
