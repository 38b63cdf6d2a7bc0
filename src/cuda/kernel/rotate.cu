// Rotary embedding of queries and new keys in place: a warp a token and head, a lane a pair of elements.
//
// Cost: reads and writes the rotated elements once, and a row of the cosine and sine table a warp (from L1 for all but
// the first head). Bound by memory.
#include "core/checked.h"
#include "core/convert.h"
#include "cuda/block/rows.h"
#include "cuda/context.h"
#include "cuda/kernel/store.h"

namespace quire::cuda {
namespace {

constexpr int kWarps = 8;

__device__ void rotate_row(const RopeStoreArgs& rope, DType dtype, const TokenRows& rows, std::int64_t token,
                           std::int32_t head, std::int64_t position) {
  const std::int32_t lane = static_cast<std::int32_t>(threadIdx.x % 32);
  const std::int64_t row = token * rows.token_stride + head * rows.head_stride;
  const std::int64_t angles = position * rope.cos_sin_stride;
  const std::int32_t half = rope.rotary_dim / 2;
  for (std::int32_t i = lane; i < half; i += 32) {
    const std::int64_t first = row + (rope.style == RopeStyle::kNeox ? i : 2 * i);
    const std::int64_t second = rope.style == RopeStyle::kNeox ? first + half : first + 1;
    const float cosine = load_as_float(rope.cos_sin, rope.cos_sin_dtype, angles + i);
    const float sine = load_as_float(rope.cos_sin, rope.cos_sin_dtype, angles + half + i);
    const float x = load_as_float(rows.data, dtype, first);
    const float y = load_as_float(rows.data, dtype, second);
    store_from_float(rows.data, dtype, first, __fsub_rn(__fmul_rn(x, cosine), __fmul_rn(y, sine)));
    store_from_float(rows.data, dtype, second, __fadd_rn(__fmul_rn(y, cosine), __fmul_rn(x, sine)));
  }
}

__global__ void __launch_bounds__(kWarps * 32) rotate_kernel(const __grid_constant__ RotateParams params) {
  const RopeStoreArgs& rope = params.rope;
  const std::int32_t heads = rope.query.num_heads + params.store.key.num_heads;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (index >= rope.num_positions * heads) return;
  const std::int64_t token = index / heads;
  const auto head = static_cast<std::int32_t>(index % heads);
  const std::int64_t position = rope.wide_positions ? static_cast<const std::int64_t*>(rope.positions)[token]
                                                    : static_cast<const std::int32_t*>(rope.positions)[token];
  if (position < 0 || position >= rope.max_position) {
    report(params.record, Fault::kPosition, static_cast<std::int32_t>(token), position, rope.max_position);
    return;
  }
  if (head < rope.query.num_heads) {
    rotate_row(rope, params.store.dtype, rope.query, token, head, position);
  } else if (token < params.store.num_slots && params.store.slots[token] >= 0) {
    rotate_row(rope, params.store.dtype, params.store.key, token, head - rope.query.num_heads, position);
  }
}

}  // namespace

Status launch_rotate(const RotateParams& params, cudaStream_t stream) {
  const std::int64_t rows = params.rope.num_positions * (params.rope.query.num_heads + params.store.key.num_heads);
  if (rows == 0) return {};
  rotate_kernel<<<static_cast<unsigned>(ceil_div(rows, kWarps)), kWarps * 32, 0, stream>>>(params);
  return to_status(cudaGetLastError(), "rotate_kernel");
}

}  // namespace quire::cuda
