// Merges two attention results over disjoint keys: a warp a token and head.
//
// Cost: reads two rows and writes one; bound by memory. A side without keys is not read.
#include "core/checked.h"
#include "cuda/attention.h"
#include "cuda/block/rows.h"
#include "cuda/context.h"

namespace quire::cuda {
namespace {

constexpr int kMergeWarps = 8;

__device__ float lse_at(const TensorView& lse, std::int64_t token, std::int64_t head) {
  const float value = static_cast<const float*>(lse.data)[head * lse.strides[0] + token * lse.strides[1]];
  return value == INFINITY ? -INFINITY : value;
}

__device__ float value_at(const TensorView& rows, std::int64_t token, std::int64_t head, std::int32_t d) {
  return load_as_float(rows.data, rows.dtype, token * rows.strides[0] + head * rows.strides[1] + d);
}

__global__ void __launch_bounds__(kMergeWarps * 32) merge_kernel(const __grid_constant__ MergeStatesArgs args) {
  const std::int64_t heads = args.output.shape[1];
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kMergeWarps + threadIdx.x / 32;
  if (index >= args.output.shape[0] * heads) return;
  const std::int64_t token = index / heads;
  const std::int64_t head = index % heads;
  const bool merges = args.prefill_tokens_with_context < 0 || token < args.prefill_tokens_with_context;
  const float prefix = merges ? lse_at(args.prefix_lse, token, head) : -INFINITY;
  const float suffix = lse_at(args.suffix_lse, token, head);
  const float largest = fmaxf(prefix, suffix);
  const bool is_empty = largest == -INFINITY;
  const float prefix_weight = is_empty ? 0.0f : expf(prefix - largest);
  const float suffix_weight = is_empty ? 0.0f : expf(suffix - largest);
  const float sum = prefix_weight + suffix_weight;
  const float norm = is_empty ? 0.0f : 1.0f / sum;
  const RowTarget target{.data = args.output.data,
                         .dtype = args.output.dtype,
                         .token_stride = args.output.strides[0],
                         .head_stride = args.output.strides[1],
                         .inverse_scale = args.output_scale > 0.0f ? 1.0f / args.output_scale : 0.0f};
  const auto lane = static_cast<std::int32_t>(threadIdx.x % 32);
  for (std::int32_t d = lane; d < args.output.shape[2]; d += 32) {
    float value = 0.0f;
    if (prefix_weight > 0.0f) value += value_at(args.prefix_output, token, head, d) * (prefix_weight * norm);
    if (suffix_weight > 0.0f) value += value_at(args.suffix_output, token, head, d) * (suffix_weight * norm);
    store_value(target, token, head, d, value);
  }
  if (lane == 0 && args.output_lse.data != nullptr) {
    static_cast<float*>(args.output_lse.data)[head * args.output_lse.strides[0] + token * args.output_lse.strides[1]] =
        is_empty ? -INFINITY : logf(sum) + largest;
  }
}

}  // namespace

Status merge_attn_states(const MergeStatesArgs& args, const Runtime& runtime) {
  QUIRE_RETURN_IF_ERROR(check_available());
  const std::int64_t rows = args.output.size(0) * args.output.size(1);
  if (rows == 0) return {};
  merge_kernel<<<static_cast<unsigned>(ceil_div(rows, kMergeWarps)), kMergeWarps * 32, 0,
                 static_cast<cudaStream_t>(runtime.stream)>>>(args);
  return to_status(cudaGetLastError(), "merge_kernel");
}

}  // namespace quire::cuda
