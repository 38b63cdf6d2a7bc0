// Finds and launches the wgmma tile instances: tensor maps of the cache's keys and values.
#include "cuda/kernel/wgmma_tile.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <span>
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

// A tensor map of 16-bit elements: five dimensions, the strides of all but the first in elements, a box of them.
struct TensorMap {
  void* data = nullptr;
  DType dtype = DType::kBFloat16;
  std::int64_t dims[5] = {};
  std::int64_t strides[4] = {};
  std::int64_t box[5] = {};
};

Status encode(CUtensorMap& map, const TensorMap& from) {
  cuuint64_t dims[5];
  cuuint64_t strides[4];
  cuuint32_t box[5];
  std::ranges::copy(from.dims, dims);
  std::ranges::transform(from.strides, strides,
                         [](std::int64_t elements) { return static_cast<cuuint64_t>(2 * elements); });
  std::ranges::transform(from.box, box, [](std::int64_t size) { return static_cast<cuuint32_t>(size); });
  const cuuint32_t steps[] = {1, 1, 1, 1, 1};
  const CUresult result = encode_tensor_map()(
      &map, from.dtype == DType::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 5,
      from.data, dims, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return {};
  return internal_error("cuTensorMapEncodeTiled: error " + std::to_string(static_cast<int>(result)));
}

// From a row of a stream to the other's, in elements.
std::int64_t stream_stride(const KVRows (&rows)[2]) {
  return (reinterpret_cast<std::intptr_t>(rows[1].data) - reinterpret_cast<std::intptr_t>(rows[0].data)) / 2;
}

Status encode_rows(CUtensorMap& map, const KVSource& kv, const KVRows (&of_streams)[2], std::int32_t size,
                   std::int32_t keys) {
  const KVRows& rows = of_streams[0];
  TensorMap from{
      .data = const_cast<void*>(static_cast<const void*>(rows.data)),
      .dtype = kv.dtype,
      .dims = {64, 8, (kv.num_kv_heads - 1) * (rows.head_stride / 64) + size / 64, kv.block_size / 8, kv.num_blocks},
      .strides = {rows.token_stride, 64, 8 * rows.token_stride, rows.page_stride},
      .box = {64, 8, size / 64, keys / 8, 1}};
  if (kv.num_streams == 2) {
    from.dims[0] = 64 * from.dims[2];
    from.dims[2] = from.box[2] = 2;
    from.strides[1] = stream_stride(of_streams);
  }
  return encode(map, from);
}

Status encode_queries(CUtensorMap& map, const AttentionArgs& args, const ScheduleShape& shape) {
  const std::int64_t streams = args.kv.num_streams;
  return encode(map,
                {.data = const_cast<void*>(args.query),
                 .dtype = args.query_dtype,
                 .dims = {64, args.num_q_heads / streams, args.num_tokens, args.kv.head_size / 64, streams},
                 .strides = {streams * args.query_head_stride, args.query_token_stride, 64, args.query_head_stride},
                 .box = {64, shape.group, shape.tokens_per_tile, 1, 1}});
}

// Strides of a tensor map: multiples of 16 bytes, below 2^40; heads are whole columns apart.
bool fits_stride(std::int64_t stride) { return stride > 0 && stride % 8 == 0 && stride < std::int64_t{1} << 39; }

bool fits_tensor_map(const KVRows& rows) {
  return fits_stride(rows.page_stride) && fits_stride(rows.token_stride) && rows.head_stride % 64 == 0 &&
         reinterpret_cast<std::uintptr_t>(rows.data) % 16 == 0;
}

// Whether all rows start at multiples of `elements` elements of a size.
bool is_aligned(const void* data, DType dtype, std::int64_t token_stride, std::int64_t head_stride,
                std::int64_t elements) {
  return reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(elements * dtype_bytes(dtype)) == 0 &&
         token_stride % elements == 0 && head_stride % elements == 0;
}

// Whether the rows of all streams fit a tensor map.
bool fits_tensor_map(const KVSource& kv, const KVRows (&of_streams)[2]) {
  const KVRows& first = of_streams[0];
  const KVRows& second = of_streams[1];
  return fits_tensor_map(first) &&
         (kv.num_streams == 1 ||
          (first.page_stride == second.page_stride && first.token_stride == second.token_stride &&
           first.head_stride == second.head_stride && fits_stride(stream_stride(of_streams))));
}

}  // namespace

bool suits_wgmma(const AttentionArgs& args) {
  const KVSource& kv = args.kv;
  const Variant& variant = args.variant;
  const float scale = variant.scale * args.query_scale;
  const bool changes_logits = variant.softcap > 0.0f || variant.alibi != AlibiKind::kNone ||
                              variant.tree.bias != nullptr || scale * kv.key[0].tensor_scale <= 0.0f ||
                              (kv.num_streams == 2 && scale * kv.key[1].tensor_scale <= 0.0f);
  const bool is_plain = dtype_bytes(kv.dtype) == 2 && kv.block_table != nullptr && args.query_dtype == kv.dtype &&
                        args.output_scale <= 0.0f &&
                        (args.output_dtype == kv.dtype || args.output_dtype == DType::kFloat32) &&
                        args.output_block_scale == nullptr;
  return is_plain && !changes_logits && kv.block_size % 8 == 0 && fits_tensor_map(kv, kv.key) &&
         fits_tensor_map(kv, kv.value) && fits_stride(args.query_token_stride) &&
         fits_stride(args.query_head_stride * kv.num_streams) &&
         reinterpret_cast<std::uintptr_t>(args.query) % 16 == 0 &&
         is_aligned(args.output, args.output_dtype, args.output_token_stride, args.output_head_stride, 8) &&
         encode_tensor_map() != nullptr;
}

const TileKernel* find_wgmma_kernel(const TileKey& key) {
#if defined(QUIRE_HAS_WGMMA)
  if (key.dtype != DType::kBFloat16 && key.dtype != DType::kFloat16) return nullptr;
  const bool is_bf16 = key.dtype == DType::kBFloat16;
  std::span<const TileKernel> instances = is_bf16 ? wgmma_instances_bf16() : wgmma_instances_f16();
  if (key.num_streams == 2) instances = wgmma_pair_instances();
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
  QUIRE_RETURN_IF_ERROR(encode_rows(params.keys, kv, kv.key, kv.head_size, params.box_keys));
  QUIRE_RETURN_IF_ERROR(encode_rows(params.values, kv, kv.value, kv.head_size_v, params.box_keys));
  QUIRE_RETURN_IF_ERROR(encode_queries(params.queries, split.args, split.shape));
  QUIRE_CUDA_RETURN_IF_ERROR(
      cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize, kernel.shared_bytes));
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;  // of two blocks near each other
  attributes[1].val.clusterDim = {2, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(split.shape.num_groups * kv.num_kv_heads));
  config.blockDim = dim3(static_cast<unsigned>(kernel.threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(kernel.shared_bytes);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = config.gridDim.x % 2 == 0 ? 2 : 1;
  void* arguments[] = {&params};
  return to_status(cudaLaunchKernelExC(&config, kernel.function, arguments), "wgmma_kernel");
}

}  // namespace quire::cuda
