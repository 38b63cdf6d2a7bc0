// Finds and launches the wgmma tile instances: tensor maps of the cache's keys and values.
#include "cuda/kernel/wgmma_tile.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <string>

namespace quire::cuda {
namespace {

using EncodeTensorMap = decltype(&cuTensorMapEncodeTiled);

// The driver's function, found through the runtime, so that programs need not link the driver.
EncodeTensorMap encode_tensor_map() {
  static const EncodeTensorMap kFunction = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
#if CUDART_VERSION >= 12050
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
#else
    const cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result);
#endif
    return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? reinterpret_cast<EncodeTensorMap>(found)
                                                                         : nullptr;
  }();
  return kFunction;
}

// Rows of a page that one copy brings: the largest power of two that divides the block size, at most a stage.
std::int32_t box_keys(const KVSource& kv, std::int32_t most) { return std::min(kv.block_size & -kv.block_size, most); }

Status encode(CUtensorMap& map, const KVSource& kv, const KVRows& rows, std::int32_t size, std::int32_t keys) {
  const auto bytes = static_cast<cuuint64_t>(dtype_bytes(kv.dtype));
  const auto stride = [&](std::int64_t elements) { return static_cast<cuuint64_t>(elements) * bytes; };
  const std::int64_t columns = (kv.num_kv_heads - 1) * (rows.head_stride / 64) + size / 64;
  const cuuint64_t dims[] = {64, 8, static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(kv.block_size / 8),
                             static_cast<cuuint64_t>(kv.num_blocks)};
  const cuuint64_t strides[] = {stride(rows.token_stride), stride(64), stride(8 * rows.token_stride),
                                stride(rows.page_stride)};
  const cuuint32_t box[] = {64, 8, static_cast<cuuint32_t>(size / 64), static_cast<cuuint32_t>(keys / 8), 1};
  const cuuint32_t steps[] = {1, 1, 1, 1, 1};
  const CUresult result = encode_tensor_map()(
      &map, kv.dtype == DType::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 5,
      rows.data, dims, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return {};
  return internal_error("cuTensorMapEncodeTiled: error " + std::to_string(static_cast<int>(result)));
}

// Strides of a tensor map: multiples of 16 bytes, below 2^40; heads are whole columns apart.
bool fits_tensor_map(const KVRows& rows) {
  const auto fits = [](std::int64_t stride) { return stride > 0 && stride % 8 == 0 && stride < std::int64_t{1} << 39; };
  return fits(rows.page_stride) && fits(rows.token_stride) && rows.head_stride % 64 == 0 &&
         reinterpret_cast<std::uintptr_t>(rows.data) % 16 == 0;
}

// Whether all rows start at multiples of `elements` elements of a size.
bool is_aligned(const void* data, DType dtype, std::int64_t token_stride, std::int64_t head_stride,
                std::int64_t elements) {
  return reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(elements * dtype_bytes(dtype)) == 0 &&
         token_stride % elements == 0 && head_stride % elements == 0;
}

}  // namespace

bool suits_wgmma(const AttentionArgs& args) {
  const KVSource& kv = args.kv;
  const Variant& variant = args.variant;
  const bool changes_logits = variant.softcap > 0.0f || variant.alibi != AlibiKind::kNone ||
                              variant.tree.bias != nullptr ||
                              variant.scale * args.query_scale * kv.key[0].tensor_scale <= 0.0f;
  const bool is_plain = kv.num_streams == 1 && dtype_bytes(kv.dtype) == 2 && kv.block_table != nullptr &&
                        args.query_dtype == kv.dtype && args.output_scale <= 0.0f &&
                        (args.output_dtype == kv.dtype || args.output_dtype == DType::kFloat32) &&
                        args.output_block_scale == nullptr;
  return is_plain && !changes_logits && kv.block_size % 8 == 0 && fits_tensor_map(kv.key[0]) &&
         fits_tensor_map(kv.value[0]) &&
         is_aligned(args.query, args.query_dtype, args.query_token_stride, args.query_head_stride, 8) &&
         is_aligned(args.output, args.output_dtype, args.output_token_stride, args.output_head_stride, 2) &&
         encode_tensor_map() != nullptr;
}

const TileKernel* find_wgmma_kernel(const TileKey& key) {
#if defined(QUIRE_HAS_WGMMA)
  if (key.dtype != DType::kBFloat16 && key.dtype != DType::kFloat16) return nullptr;
  const WgmmaInstances& instances = key.dtype == DType::kBFloat16 ? wgmma_instances_bf16() : wgmma_instances_f16();
  const auto found = std::ranges::find(instances, key, &TileKernel::key);
  return found == instances.end() ? nullptr : &*found;
#else
  static_cast<void>(key);
  return nullptr;
#endif
}

Status launch_wgmma(const TileKernel& kernel, const SplitParams& split, cudaStream_t stream) {
  const KVSource& kv = split.args.kv;
  WgmmaParams params{};
  params.split = split;
  params.box_keys = box_keys(kv, 64);
  params.head_columns_k = static_cast<std::int32_t>(kv.key[0].head_stride / 64);
  params.head_columns_v = static_cast<std::int32_t>(kv.value[0].head_stride / 64);
  QUIRE_RETURN_IF_ERROR(encode(params.keys, kv, kv.key[0], kv.head_size, params.box_keys));
  QUIRE_RETURN_IF_ERROR(encode(params.values, kv, kv.value[0], kv.head_size_v, params.box_keys));
  QUIRE_CUDA_RETURN_IF_ERROR(
      cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize, kernel.shared_bytes));
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(split.shape.num_groups * kv.num_kv_heads));
  config.blockDim = dim3(static_cast<unsigned>(kernel.threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(kernel.shared_bytes);
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = 1;
  void* arguments[] = {&params};
  return to_status(cudaLaunchKernelExC(&config, kernel.function, arguments), "wgmma_kernel");
}

}  // namespace quire::cuda
