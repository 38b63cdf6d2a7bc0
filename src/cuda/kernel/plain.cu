// Launches the plain kernel: one instance a dtype of stored elements.
#include "cuda/kernel/plain.inl.h"

#include <string>

#include "core/checked.h"
#include "cuda/context.h"

namespace quire::cuda {
namespace {

template <DType kKV>
Status launch(const PlainParams& params, cudaStream_t stream) {
  const AttentionArgs& args = params.args;
  const std::int64_t row_bytes = args.kv.head_size * static_cast<std::int64_t>(sizeof(float));
  QUIRE_ASSIGN_OR_RETURN(const Context* device, context());
  std::int64_t warps = kPlainWarps;
  while (warps > 1 && warps * row_bytes > 48 * 1024) warps /= 2;
  if (warps * row_bytes > device->shared_bytes) {
    return unsupported("head_size: want at most " + std::to_string(device->shared_bytes / 4) + " on this device, got " +
                       std::to_string(args.kv.head_size));
  }
  if (warps * row_bytes > 48 * 1024) {
    QUIRE_CUDA_RETURN_IF_ERROR(cudaFuncSetAttribute(plain_kernel<kKV>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                    static_cast<int>(row_bytes)));
  }
  const std::int64_t blocks = ceil_div(static_cast<std::int64_t>(args.num_tokens) * args.num_q_heads, warps);
  if (blocks > 0x7fffffff) return unsupported("num_tokens * num_q_heads: want fewer than 2^33 rows");
  plain_kernel<kKV><<<static_cast<unsigned>(blocks), static_cast<unsigned>(warps * 32),
                      static_cast<std::size_t>(warps * row_bytes), stream>>>(params);
  return to_status(cudaGetLastError(), "plain_kernel");
}

}  // namespace

Status launch_plain(const PlainParams& params, cudaStream_t stream) {
  switch (params.args.kv.dtype) {
    case DType::kFloat32:
      return launch<DType::kFloat32>(params, stream);
    case DType::kFloat16:
      return launch<DType::kFloat16>(params, stream);
    case DType::kBFloat16:
      return launch<DType::kBFloat16>(params, stream);
    case DType::kFloat8E4M3:
      return launch<DType::kFloat8E4M3>(params, stream);
    case DType::kFloat8E5M2:
      return launch<DType::kFloat8E5M2>(params, stream);
    case DType::kInt8:
      return launch<DType::kInt8>(params, stream);
    default:
      return unsupported("kv.dtype: want a cache element type, got " + std::string(dtype_name(params.args.kv.dtype)));
  }
}

}  // namespace quire::cuda
