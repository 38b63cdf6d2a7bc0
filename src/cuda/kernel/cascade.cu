// Corrects the log-sum-exps of a cascade's prefix for each request's linear ALiBi: a thread a (q_head, token).
//
// Cost: reads and writes num_q_heads * num_tokens floats; a few microseconds, bound by the launch.
#include "core/checked.h"
#include "cuda/attention.h"
#include "cuda/block/rows.h"
#include "cuda/context.h"

namespace quire::cuda {
namespace {

constexpr int kShiftThreads = 256;

struct ShiftParams {
  AttentionArgs args;
  float* lse = nullptr;
  std::int64_t head_stride = 0;
  std::int32_t prefix_len = 0;
};

__global__ void __launch_bounds__(kShiftThreads) shift_kernel(const __grid_constant__ ShiftParams params) {
  const AttentionArgs& args = params.args;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kShiftThreads + threadIdx.x;
  if (index >= static_cast<std::int64_t>(args.num_tokens) * args.num_q_heads) return;
  const auto token = static_cast<std::int32_t>(index % args.num_tokens);
  const auto head = static_cast<std::int32_t>(index / args.num_tokens);
  const std::int32_t seq = find_seq(args.query_start_loc, args.num_seqs, token);
  if (seq < 0) return;
  const std::int32_t begin = args.query_start_loc[seq];
  const std::int32_t context = args.seq_lens[seq] - (args.query_start_loc[seq + 1] - begin);
  const std::int32_t origin = args.variant.alibi == AlibiKind::kLinear ? context : context + token - begin;
  const float distance = static_cast<float>(params.prefix_len - args.num_tokens - origin);
  params.lse[head * params.head_stride + token] += args.variant.alibi_slopes[head] * distance;
}

}  // namespace

Status shift_prefix_lse(const AttentionArgs& args, std::int32_t prefix_len, const TensorView& lse,
                        const Runtime& runtime) {
  if (args.variant.alibi == AlibiKind::kNone) return {};
  const std::int64_t rows = static_cast<std::int64_t>(args.num_tokens) * args.num_q_heads;
  const ShiftParams params{
      .args = args, .lse = lse.as<float>(), .head_stride = lse.stride(0), .prefix_len = prefix_len};
  shift_kernel<<<static_cast<unsigned>(ceil_div(rows, kShiftThreads)), kShiftThreads, 0,
                 static_cast<cudaStream_t>(runtime.stream)>>>(params);
  return to_status(cudaGetLastError(), "shift_kernel");
}

}  // namespace quire::cuda
