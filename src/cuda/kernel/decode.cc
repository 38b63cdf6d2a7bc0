// Finds and launches decode instances.
#include "cuda/kernel/decode.h"

#include <array>

#include "cuda/kernel/decode_instances.h"

namespace quire::cuda {
namespace {

// Wide and token kernels are compiled where Hopper's machine code is.
DecodeInstances hopper_instances(DType kv) {
#if defined(QUIRE_HAS_WGMMA)
  if (kv == DType::kBFloat16) return decode_token_bf16();
  if (kv == DType::kFloat16) return decode_token_f16();
  if (kv == DType::kFloat8E4M3) return decode_wide_e4m3();
  if (kv == DType::kInt8) return decode_wide_int8();
#endif
  static_cast<void>(kv);
  return {};
}

template <DType kKV>
std::array<DecodeInstances, 8> instances() {
  return {decode_64<kKV>(),  decode_96<kKV>(),  decode_128<kKV>(),     decode_pairs<kKV>(),
          decode_192<kKV>(), decode_256<kKV>(), decode_192_128<kKV>(), hopper_instances(kKV)};
}

std::array<DecodeInstances, 8> instances_of(DType kv) {
  switch (kv) {
    case DType::kBFloat16:
      return instances<DType::kBFloat16>();
    case DType::kFloat16:
      return instances<DType::kFloat16>();
    case DType::kFloat8E4M3:
      return instances<DType::kFloat8E4M3>();
    case DType::kInt8:
      return instances<DType::kInt8>();
    default:
      return {};
  }
}

}  // namespace

const DecodeKernel* find_decode_kernel(const DecodeKey& key) {
  for (const DecodeInstances instances : instances_of(key.kv)) {
    for (const DecodeKernel& kernel : instances) {
      if (kernel.key == key) return &kernel;
    }
  }
  return nullptr;
}

std::int64_t decode_shared_bytes(const DecodeKernel& kernel, std::int32_t num_seqs) {
  return kernel.shared_bytes + kDecodeRecordBytes + (32 + static_cast<std::int64_t>(num_seqs) + 1) * 4;
}

Status launch_decode(const DecodeKernel& kernel, const SplitParams& params, cudaStream_t stream) {
  const auto shared = static_cast<int>(decode_shared_bytes(kernel, params.args.num_seqs));
  QUIRE_CUDA_RETURN_IF_ERROR(
      cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  const auto blocks = static_cast<unsigned>(params.shape.num_groups * params.args.kv.num_kv_heads / kernel.key.heads);
  SplitParams copy = params;
  void* arguments[] = {&copy};
  QUIRE_CUDA_RETURN_IF_ERROR(cudaLaunchKernel(kernel.function, dim3(blocks),
                                              dim3(static_cast<unsigned>(kernel.threads)), arguments,
                                              static_cast<std::size_t>(shared), stream));
  return {};
}

}  // namespace quire::cuda
