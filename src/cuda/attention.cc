// Runs attention calls on the GPU: binds what was decided to tensors and scratch, and launches.
#include "cuda/attention.h"

#include <algorithm>
#include <string>

#include "cuda/call.h"
#include "cuda/context.h"
#include "cuda/kernel/combine.h"
#include "cuda/kernel/plain.h"

namespace quire::cuda {
namespace {

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

// The requests that no split kernel takes.
Status run_plain(const AttentionArgs& args, const Call& call, const RowTarget& target, std::byte* scratch,
                 const Context& device, cudaStream_t stream) {
  PlainParams params{.args = args, .target = target, .record = device.record_device};
  if (call.decode != nullptr) params.min_query_len = call.decode_rows / group_size(args) + 1;
  if (!is_differential(args)) return launch_plain(params, stream);
  const std::int32_t width = 2 * args.kv.head_size_v;
  std::byte* rows = scratch + call.stream_rows;
  params.target = float_target(rows, args.num_q_heads, width);
  QUIRE_RETURN_IF_ERROR(launch_plain(params, stream));
  return launch_differential_tail({.rows = reinterpret_cast<const float*>(rows),
                                   .query_start_loc = args.query_start_loc,
                                   .num_seqs = args.num_seqs,
                                   .min_query_len = params.min_query_len,
                                   .target = target,
                                   .tail = args.differential,
                                   .num_tokens = args.num_tokens,
                                   .num_pairs = args.num_q_heads / 2,
                                   .width = width},
                                  stream);
}

void bind_stage(Stage& stage, const AttentionArgs& args, const RowTarget& target, std::byte* scratch,
                const Context& device) {
  SplitParams& split = stage.split;
  split.args = args;
  split.target = target;
  split.record = device.record_device;
  split.table = reinterpret_cast<std::int32_t*>(scratch + stage.table);
  split.partial_states = reinterpret_cast<float2*>(scratch + stage.states);
  split.partial_rows = reinterpret_cast<float*>(scratch + stage.partials);
  if (stage.entries >= 0) split.entries = reinterpret_cast<TileRows*>(scratch + stage.entries);
}

// All requests, into `target` (of q_heads, or of pairs).
Status run(const AttentionArgs& args, Call& call, const RowTarget& target, std::byte* scratch, const Context& device,
           cudaStream_t stream) {
  if (call.decode != nullptr) {
    bind_stage(call.decode_stage, args, target, scratch, device);
    QUIRE_RETURN_IF_ERROR(launch_decode(*call.decode, call.decode_stage.split, stream));
    QUIRE_RETURN_IF_ERROR(call.decode->combine(call.decode_stage.split, device, stream));
  }
  if (call.tile != nullptr) {
    bind_stage(call.tile_stage, args, target, scratch, device);
    QUIRE_RETURN_IF_ERROR(launch_tile(*call.tile, call.tile_stage.split, stream));
    QUIRE_RETURN_IF_ERROR(launch_combine(call.tile_stage.split, device, stream));
  }
  return call.uses_plain(args) ? run_plain(args, call, target, scratch, device, stream) : Status();
}

}  // namespace

Status check_available() { return context().status(); }

std::size_t attention_workspace_bytes(const AttentionArgs& args, const AttentionPlan& plan, const Runtime& runtime) {
  const Result<const Context*> device = context();
  if (!device.ok()) return 0;
  std::int64_t bytes = 0;
  for (const DecodeChoice decode : {DecodeChoice::kWide, DecodeChoice::kNarrow}) {
    for (const TileChoice tile : {TileChoice::kWgmma, TileChoice::kMma}) {
      bytes = std::max(bytes, plan_call(args, plan, runtime, **device, {decode, tile}).bytes);
    }
  }
  return static_cast<std::size_t>(bytes);
}

Status attention(const AttentionArgs& args, const AttentionPlan& plan, const Runtime& runtime,
                 std::span<std::byte> workspace) {
  QUIRE_ASSIGN_OR_RETURN(const Context* device, context());
  QUIRE_RETURN_IF_ERROR(take_fault(*device));
  if (args.num_seqs == 0 || args.num_tokens == 0) return {};
  Call call = plan_call(args, plan, runtime, *device);
  if (workspace.size() < static_cast<std::size_t>(call.bytes)) {
    return resource_exhausted("workspace: want " + std::to_string(call.bytes) + " bytes, got " +
                              std::to_string(workspace.size()));
  }
  if (call.bytes > 0 && reinterpret_cast<std::uintptr_t>(workspace.data()) % 64 != 0) {
    return invalid_argument("workspace: want an address aligned to 64, got another");
  }
  const auto stream = static_cast<cudaStream_t>(runtime.stream);
  RowTarget target = output_target(args);
  std::byte* rows = workspace.data() + call.output_rows;
  if (args.output_block_scale != nullptr) target = float_target(rows, args.num_q_heads, args.kv.head_size_v);
  if (is_differential(args)) target.head_stride *= 2;
  QUIRE_RETURN_IF_ERROR(run(args, call, target, workspace.data(), *device, stream));
  if (args.output_block_scale == nullptr) return {};
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
