// Chooses the kernels of an attention call and lays out their scratch.
#include "cuda/attention.h"

#include <string>

#include "core/checked.h"
#include "cuda/context.h"
#include "cuda/kernel/plain.h"

namespace quire::cuda {
namespace {

constexpr std::int64_t kAlign = 256;

bool is_differential(const AttentionArgs& args) { return args.kv.num_streams == 2; }

// Where the parts of a call's scratch begin. Rows that a tail finishes are kept as float32.
struct Scratch {
  std::int64_t stream_rows = 0;  // [num_tokens, num_q_heads, 2 * head_size_v], differential
  std::int64_t output_rows = 0;  // [num_tokens, num_q_heads * head_size_v], block-scaled output
  std::int64_t bytes = 0;
};

Scratch scratch_of(const AttentionArgs& args) {
  const std::int64_t values = static_cast<std::int64_t>(args.num_tokens) * args.num_q_heads * args.kv.head_size_v;
  const auto floats = static_cast<std::int64_t>(sizeof(float));
  Scratch scratch;
  if (is_differential(args)) scratch.bytes = round_up(2 * values * floats, kAlign);
  scratch.output_rows = scratch.bytes;
  if (args.output_block_scale != nullptr) scratch.bytes += round_up(values * floats, kAlign);
  return scratch;
}

Status check_args(const AttentionArgs& args) {
  if (args.num_seqs < 0 || args.num_tokens < 0) return invalid_argument("num_seqs, num_tokens: want >= 0");
  const std::int32_t heads_a_row = args.kv.num_kv_heads * args.kv.num_streams;
  if (args.kv.num_streams < 1 || args.kv.num_streams > 2 || heads_a_row <= 0 || args.num_q_heads % heads_a_row != 0) {
    return invalid_argument("num_q_heads: want a multiple of " + std::to_string(heads_a_row) + " kv heads, got " +
                            std::to_string(args.num_q_heads));
  }
  if (args.kv.head_size <= 0 || args.kv.head_size_v <= 0 || args.kv.block_size <= 0) {
    return invalid_argument("kv: want head_size, head_size_v and block_size > 0");
  }
  if (args.query == nullptr || args.output == nullptr || args.query_start_loc == nullptr || args.seq_lens == nullptr) {
    return invalid_argument("query, output, query_start_loc, seq_lens: want device pointers, got null");
  }
  if (args.kv.block_table == nullptr && args.kv.kv_start == nullptr) {
    return invalid_argument("kv: want a block_table or kv_start, got neither");
  }
  for (std::int32_t stream = 0; stream < args.kv.num_streams; ++stream) {
    if (args.kv.key[stream].data == nullptr || args.kv.value[stream].data == nullptr) {
      return invalid_argument("kv: want keys and values, got null");
    }
  }
  if (is_float8(args.output_dtype) && args.output_scale <= 0.0f && args.output_block_scale == nullptr) {
    return invalid_argument("output_scale: want > 0 or block scales for a float8 output");
  }
  return {};
}

RowTarget output_target(const AttentionArgs& args) {
  const bool scaled = args.output_scale > 0.0f && args.output_block_scale == nullptr;
  return {.data = args.output,
          .dtype = args.output_dtype,
          .token_stride = args.output_token_stride,
          .head_stride = args.output_head_stride,
          .inverse_scale = scaled ? 1.0f / args.output_scale : 0.0f};
}

// Contiguous float32 rows of `width` elements a head.
RowTarget float_target(void* data, std::int64_t heads, std::int64_t width) {
  return {.data = data, .token_stride = heads * width, .head_stride = width};
}

Status run_plain(const AttentionArgs& args, const RowTarget& target, std::byte* stream_rows, cudaStream_t stream) {
  QUIRE_ASSIGN_OR_RETURN(const Context* device, context());
  if (!is_differential(args)) return launch_plain({args, target, device->record_device}, stream);
  const std::int32_t width = 2 * args.kv.head_size_v;
  QUIRE_RETURN_IF_ERROR(
      launch_plain({args, float_target(stream_rows, args.num_q_heads, width), device->record_device}, stream));
  RowTarget pairs = target;
  pairs.head_stride *= 2;
  return launch_differential_tail({.rows = reinterpret_cast<const float*>(stream_rows),
                                   .token_end = args.query_start_loc + args.num_seqs,
                                   .target = pairs,
                                   .tail = args.differential,
                                   .num_tokens = args.num_tokens,
                                   .num_pairs = args.num_q_heads / 2,
                                   .width = width},
                                  stream);
}

}  // namespace

Status check_available() { return context().status(); }

std::size_t attention_workspace_bytes(const AttentionArgs& args, const AttentionPlan&, const Runtime&) {
  return static_cast<std::size_t>(scratch_of(args).bytes);
}

Status attention(const AttentionArgs& args, const AttentionPlan&, const Runtime& runtime,
                 std::span<std::byte> workspace) {
  QUIRE_ASSIGN_OR_RETURN(const Context* device, context());
  QUIRE_RETURN_IF_ERROR(take_fault(*device));
  QUIRE_RETURN_IF_ERROR(check_args(args));
  const Scratch scratch = scratch_of(args);
  if (workspace.size() < static_cast<std::size_t>(scratch.bytes)) {
    return resource_exhausted("workspace: want " + std::to_string(scratch.bytes) + " bytes, got " +
                              std::to_string(workspace.size()));
  }
  if (args.num_seqs == 0 || args.num_tokens == 0) return {};
  const auto stream = static_cast<cudaStream_t>(runtime.stream);
  if (args.output_block_scale == nullptr) return run_plain(args, output_target(args), workspace.data(), stream);
  std::byte* rows = workspace.data() + scratch.output_rows;
  QUIRE_RETURN_IF_ERROR(
      run_plain(args, float_target(rows, args.num_q_heads, args.kv.head_size_v), workspace.data(), stream));
  return launch_block_quant({.rows = reinterpret_cast<const float*>(rows),
                             .token_end = args.query_start_loc + args.num_seqs,
                             .num_tokens = args.num_tokens,
                             .width = args.num_q_heads * args.kv.head_size_v,
                             .head_size = args.kv.head_size_v,
                             .target = output_target(args),
                             .scales = args.output_block_scale,
                             .scale_stride = args.output_block_scale_stride},
                            stream);
}

}  // namespace quire::cuda
