// cascade_attention: the keys that all requests share once for all rows, the rest of each request apart, merged.
//
// The prefix becomes one sequence that every row belongs to, without a mask; the suffix is the batch with block tables
// that start behind the prefix. Positions in the suffix are counted from the end of the prefix, which changes no term
// that measures distances. What a row's linear ALiBi adds to the prefix differs from what one sequence for all rows
// adds by a constant of the row, so it goes into the row's log-sum-exp before the merge.
#include <algorithm>
#include <cstring>
#include <string>

#include "backends/attention_args.h"
#include "core/checked.h"
#include "cuda/attention.h"
#include "quire/cuda.h"
#include "quire/ops.h"

namespace quire {

// The plan's small arrays in one piece of device memory.
class CascadeDeviceArrays {
 public:
  cuda::DeviceBuffer buffer;
  const std::int32_t* prefix_query_start_loc = nullptr;
  const std::int32_t* prefix_seq_lens = nullptr;
  const std::int32_t* suffix_seq_lens = nullptr;
  const std::int32_t* suffix_mm_ranges = nullptr;
};

namespace {

using std::to_string;

constexpr std::size_t kAlignment = 64;

Status wrong_prefix(std::string_view name, const std::string& want, const std::string& got) {
  return invalid_argument(std::string(name) + ": want " + want + ", got " + got);
}

std::int32_t query_len(const AttentionArgs& args, std::int32_t seq) {
  return args.query_start_loc[seq + 1] - args.query_start_loc[seq];
}

Status check_form(const AttentionArgs& args, std::int32_t prefix_len) {
  if (args.kv.block_table == nullptr) return wrong_prefix("args.kv.block_table", "a paged cache", "contiguous keys");
  if (prefix_len <= 0 || prefix_len % args.kv.block_size != 0) {
    return wrong_prefix("common_prefix_len", "a positive multiple of block_size " + to_string(args.kv.block_size),
                        to_string(prefix_len));
  }
  if (args.kv.num_streams != 1) return unsupported("cascade_attention: differential attention has no merged form");
  if (args.output_block_scale != nullptr) return unsupported("cascade_attention: block-scaled output, want one scale");
  if (args.variant.alibi == AlibiKind::kSqrt) {
    return unsupported("cascade_attention: square-root ALiBi depends on each row's position in the prefix");
  }
  return {};
}

// The first key that a window or chunk leaves to the last row of a sequence.
std::int64_t first_visible_key(const Variant& variant, std::int64_t last_q_pos) {
  std::int64_t first = 0;
  if (variant.window_left >= 0) first = std::max(first, last_q_pos - variant.window_left);
  if (variant.chunk > 0) first = std::max(first, (last_q_pos / variant.chunk - variant.chunk_lookback) * variant.chunk);
  return first;
}

Status check_sequence(const AttentionArgs& args, const CascadePlan& plan, std::int32_t seq) {
  const std::int32_t prefix_len = plan.common_prefix_len;
  const std::string name = "args.seq_lens[" + to_string(seq) + "]";
  if (query_len(args, seq) == 0) return {};
  const std::int32_t context_len = args.seq_lens[seq] - query_len(args, seq);
  if (context_len < prefix_len) {
    return wrong_prefix(name,
                        "at least " + to_string(prefix_len + query_len(args, seq)) + " (the prefix and the new tokens)",
                        to_string(args.seq_lens[seq]));
  }
  const std::int64_t first = first_visible_key(args.variant, args.seq_lens[seq] - 1);
  if (first > 0) {
    return unsupported("cascade_attention: a window or chunk hides the prefix's keys before " + to_string(first) +
                       " from request " + to_string(seq));
  }
  const std::int32_t* shared = args.kv.block_table + plan.first_request * args.kv.block_table_stride;
  const std::int32_t* own = args.kv.block_table + seq * args.kv.block_table_stride;
  for (std::int32_t block = 0; block < prefix_len / args.kv.block_size; ++block) {
    if (own[block] == shared[block]) continue;
    return wrong_prefix(
        "args.kv.block_table[" + to_string(seq) + "][" + to_string(block) + "]",
        "block " + to_string(shared[block]) + ", which the prefix of request " + to_string(plan.first_request) + " has",
        to_string(own[block]));
  }
  return {};
}

// The float32 halves, their log-sum-exps and the scratch of the attention below, in one workspace.
struct Scratch {
  std::size_t half_bytes = 0;
  std::size_t lse_bytes = 0;
  std::size_t inner_bytes = 0;
  std::size_t total() const { return 2 * half_bytes + 2 * lse_bytes + inner_bytes; }
};

AttentionArgs prefix_args(const AttentionArgs& args, const CascadePlan& plan) {
  AttentionArgs prefix = args;
  prefix.num_seqs = 1;
  prefix.kv.block_table += plan.first_request * args.kv.block_table_stride;
  const CascadeDeviceArrays* device = plan.device_arrays.get();
  prefix.query_start_loc = device ? device->prefix_query_start_loc : plan.prefix_query_start_loc.data();
  prefix.seq_lens = device ? device->prefix_seq_lens : plan.prefix_seq_lens.data();
  prefix.variant = Variant{};
  prefix.variant.scale = args.variant.scale;
  prefix.variant.softcap = args.variant.softcap;
  prefix.variant.causal = false;
  if (args.variant.alibi != AlibiKind::kNone) {
    prefix.variant.alibi = AlibiKind::kLinear;
    prefix.variant.alibi_slopes = args.variant.alibi_slopes;
  }
  return prefix;
}

AttentionArgs suffix_args(const AttentionArgs& args, const CascadePlan& plan) {
  AttentionArgs suffix = args;
  const CascadeDeviceArrays* device = plan.device_arrays.get();
  suffix.seq_lens = device ? device->suffix_seq_lens : plan.suffix_seq_lens.data();
  suffix.kv.block_table += plan.common_prefix_len / args.kv.block_size;
  suffix.variant.window_left = -1;  // hides nothing: make_cascade_plan has seen that
  suffix.variant.chunk = 0;
  if (!plan.suffix_mm_ranges.empty()) {
    suffix.variant.mm_prefix_ranges = device ? device->suffix_mm_ranges : plan.suffix_mm_ranges.data();
  }
  return suffix;
}

Scratch scratch_of(const AttentionArgs& args, const CascadePlan& plan, const Runtime& runtime) {
  const auto aligned = [](std::size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; };
  const std::size_t rows = static_cast<std::size_t>(args.num_tokens) * static_cast<std::size_t>(args.num_q_heads);
  return {.half_bytes = aligned(rows * static_cast<std::size_t>(args.kv.head_size_v) * sizeof(float)),
          .lse_bytes = aligned(rows * sizeof(float)),
          .inner_bytes = std::max(attention_workspace_bytes(prefix_args(args, plan), plan.prefix, runtime),
                                  attention_workspace_bytes(suffix_args(args, plan), plan.suffix, runtime))};
}

// One half: float32 output and log-sum-exp in the workspace.
struct Half {
  TensorView output;
  TensorView lse;
};

Result<Half> half_at(const AttentionArgs& args, std::byte* output, std::byte* lse) {
  Half half;
  const Device device = args.kv.device;
  QUIRE_ASSIGN_OR_RETURN(half.output, make_tensor(output, DType::kFloat32,
                                                  {args.num_tokens, args.num_q_heads, args.kv.head_size_v}, device));
  QUIRE_ASSIGN_OR_RETURN(half.lse, make_tensor(lse, DType::kFloat32, {args.num_q_heads, args.num_tokens}, device));
  return half;
}

void write_to(AttentionArgs& args, const Half& half) {
  args.output = half.output.data;
  args.output_dtype = DType::kFloat32;
  args.output_token_stride = half.output.stride(0);
  args.output_head_stride = half.output.stride(1);
  args.output_scale = 0.0f;
  args.lse = half.lse.as<float>();
  args.lse_head_stride = half.lse.stride(0);
}

// Brings the prefix's ALiBi from "distance to the end of the shared sequence" to each request's own.
void shift_prefix_lse(const AttentionArgs& args, const CascadePlan& plan, const TensorView& lse) {
  if (args.variant.alibi == AlibiKind::kNone) return;
  const std::int64_t shared_context = static_cast<std::int64_t>(plan.common_prefix_len) - args.num_tokens;
  for (std::int32_t seq = 0; seq < args.num_seqs; ++seq) {
    const std::int64_t context = args.seq_lens[seq] - query_len(args, seq);
    for (std::int32_t row = 0; row < query_len(args, seq); ++row) {
      const std::int64_t origin = args.variant.alibi == AlibiKind::kLinear ? context : context + row;
      const std::int64_t token = args.query_start_loc[seq] + row;
      for (std::int32_t head = 0; head < args.num_q_heads; ++head) {
        lse.as<float>()[head * lse.stride(0) + token] +=
            args.variant.alibi_slopes[head] * static_cast<float>(shared_context - origin);
      }
    }
  }
}

// The caller's output and lse as tensors.
MergeStatesArgs merge_args(const AttentionArgs& args, const Half& prefix, const Half& suffix) {
  MergeStatesArgs merge{.prefix_output = prefix.output,
                        .prefix_lse = prefix.lse,
                        .suffix_output = suffix.output,
                        .suffix_lse = suffix.lse,
                        .output = prefix.output,
                        .output_lse = {},
                        .output_scale = args.output_scale};
  merge.output.data = args.output;
  merge.output.dtype = args.output_dtype;
  merge.output.strides = {args.output_token_stride, args.output_head_stride, 1};
  if (args.lse == nullptr) return merge;
  merge.output_lse = prefix.lse;
  merge.output_lse.data = args.lse;
  merge.output_lse.strides = {args.lse_head_stride, 1};
  return merge;
}

}  // namespace

Result<CascadePlan> make_cascade_plan(const AttentionArgs& args, std::int32_t common_prefix_len,
                                      const PlanConfig& config) {
  QUIRE_RETURN_IF_ERROR(backends::check_batch(args));
  QUIRE_RETURN_IF_ERROR(check_form(args, common_prefix_len));
  CascadePlan plan{.common_prefix_len = common_prefix_len,
                   .first_request = 0,
                   .prefix_query_start_loc = {0, args.num_tokens},
                   .prefix_seq_lens = {common_prefix_len},
                   .suffix_seq_lens = {},
                   .suffix_mm_ranges = {},
                   .prefix = {},
                   .suffix = {}};
  while (plan.first_request + 1 < args.num_seqs && query_len(args, plan.first_request) == 0) ++plan.first_request;
  for (std::int32_t seq = 0; seq < args.num_seqs; ++seq) {
    QUIRE_RETURN_IF_ERROR(check_sequence(args, plan, seq));
    plan.suffix_seq_lens.push_back(std::max(args.seq_lens[seq] - common_prefix_len, 0));
  }
  if (args.variant.mm_prefix_ranges != nullptr) {
    const std::int64_t count = 2ll * args.num_seqs * args.variant.mm_prefix_max_ranges;
    plan.suffix_mm_ranges.assign(args.variant.mm_prefix_ranges, args.variant.mm_prefix_ranges + count);
    for (std::int32_t& position : plan.suffix_mm_ranges) position -= common_prefix_len;
  }
  plan.prefix =
      make_attention_plan(config, plan.prefix_query_start_loc, plan.prefix_seq_lens, prefix_args(args, plan).variant);
  plan.suffix = make_attention_plan(config, {args.query_start_loc, static_cast<std::size_t>(args.num_seqs) + 1},
                                    plan.suffix_seq_lens, suffix_args(args, plan).variant);
  return plan;
}

Status place_cascade_plan(CascadePlan& plan, const Runtime& runtime) {
  if (runtime.backplane != Backplane::kCuda) return {};
  std::vector<std::int32_t> image;
  const auto add = [&image](const std::vector<std::int32_t>& values) {
    const std::size_t offset = image.size();
    image.insert(image.end(), values.begin(), values.end());
    return offset;
  };
  const std::size_t starts = add(plan.prefix_query_start_loc);
  const std::size_t prefix_lens = add(plan.prefix_seq_lens);
  const std::size_t suffix_lens = add(plan.suffix_seq_lens);
  const std::size_t ranges = add(plan.suffix_mm_ranges);
  auto placed = std::make_shared<CascadeDeviceArrays>();
  const std::size_t bytes = image.size() * sizeof(std::int32_t);
  QUIRE_ASSIGN_OR_RETURN(placed->buffer, cuda::DeviceBuffer::allocate(bytes));
  QUIRE_RETURN_IF_ERROR(cuda::copy_to_device(placed->buffer.data(), image.data(), bytes, runtime.stream));
  const auto* first = static_cast<const std::int32_t*>(placed->buffer.data());
  placed->prefix_query_start_loc = first + starts;
  placed->prefix_seq_lens = first + prefix_lens;
  placed->suffix_seq_lens = first + suffix_lens;
  placed->suffix_mm_ranges = first + ranges;
  plan.device_arrays = std::move(placed);
  return {};
}

std::size_t cascade_workspace_bytes(const AttentionArgs& args, const CascadePlan& plan, const Runtime& runtime) {
  return scratch_of(args, plan, runtime).total();
}

Status cascade_attention(const AttentionArgs& args, const CascadePlan& plan, const Runtime& runtime,
                         std::span<std::byte> workspace) {
  const bool on_device = runtime.backplane == Backplane::kCuda;
  // What the arguments point to is on the device then, and is checked there.
  if (!on_device) QUIRE_RETURN_IF_ERROR(backends::check_attention_args(args));
  if (on_device != (plan.device_arrays != nullptr)) {
    return invalid_argument(std::string("plan: want one ") +
                            (on_device ? "on the device, by place_cascade_plan" : "on the host") + ", got the other");
  }
  QUIRE_RETURN_IF_ERROR(check_form(args, plan.common_prefix_len));
  if (args.num_tokens == 0) return {};
  const Scratch scratch = scratch_of(args, plan, runtime);
  if (workspace.size() < scratch.total()) {
    return resource_exhausted("workspace: want " + to_string(scratch.total()) + " bytes, got " +
                              to_string(workspace.size()));
  }
  std::byte* lses = workspace.data() + 2 * scratch.half_bytes;
  QUIRE_ASSIGN_OR_RETURN(const Half prefix, half_at(args, workspace.data(), lses));
  QUIRE_ASSIGN_OR_RETURN(const Half suffix,
                         half_at(args, workspace.data() + scratch.half_bytes, lses + scratch.lse_bytes));
  const std::span<std::byte> inner = workspace.subspan(scratch.total() - scratch.inner_bytes);

  AttentionArgs prefix_call = prefix_args(args, plan);
  write_to(prefix_call, prefix);
  QUIRE_RETURN_IF_ERROR(paged_attention(prefix_call, plan.prefix, runtime, inner));
  if (on_device) {
    QUIRE_RETURN_IF_ERROR(cuda::shift_prefix_lse(args, plan.common_prefix_len, prefix.lse, runtime));
  } else {
    shift_prefix_lse(args, plan, prefix.lse);
  }
  AttentionArgs suffix_call = suffix_args(args, plan);
  write_to(suffix_call, suffix);
  QUIRE_RETURN_IF_ERROR(paged_attention(suffix_call, plan.suffix, runtime, inner));
  return merge_attn_states(merge_args(args, prefix, suffix), runtime);
}

}  // namespace quire
