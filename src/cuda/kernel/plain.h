// The plain kernels, which take every configuration, and the tails that finish rows kept as float32.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/fault.h"
#include "quire/attention.h"
#include "quire/status.h"

namespace quire::cuda {

// Where rows of results go: element d of (token, head) is at token * token_stride + head * head_stride + d.
struct RowTarget {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;
  float inverse_scale = 0.0f;  // > 0: e4m3(clamp(value * inverse_scale, +-448))
};

struct PlainParams {
  AttentionArgs args;
  RowTarget target;  // of (token, q_head) rows of num_streams * head_size_v elements
  FaultRecord* record = nullptr;
  std::int32_t min_query_len = 0;  // requests with fewer rows are another kernel's
};

// A warp a (token, q_head).
Status launch_plain(const PlainParams& params, cudaStream_t stream);

// The tail of differential attention over float32 rows [num_tokens, num_q_heads, 2 * head_size_v]: a warp a pair.
struct DifferentialTailParams {
  const float* rows = nullptr;
  const std::int32_t* query_start_loc = nullptr;  // of the requests; rows that no request has are padding
  std::int32_t num_seqs = 0;
  std::int32_t min_query_len = 0;  // as of the plain kernel
  RowTarget target;                // of (token, pair) rows
  DifferentialCombine tail;
  std::int32_t num_tokens = 0;
  std::int32_t num_pairs = 0;
  std::int32_t width = 0;
};
Status launch_differential_tail(const DifferentialTailParams& params, cudaStream_t stream);

// Quantises float32 rows [num_tokens, width] in groups of 128 with a scale each: a warp a group.
struct BlockQuantParams {
  const float* rows = nullptr;
  const std::int32_t* token_end = nullptr;  // the number of tokens, on the device; rows from there on are padding
  std::int32_t num_tokens = 0;
  std::int32_t width = 0;
  std::int32_t head_size = 0;
  RowTarget target;
  float* scales = nullptr;
  std::int64_t scale_stride = 0;
};
Status launch_block_quant(const BlockQuantParams& params, cudaStream_t stream);

}  // namespace quire::cuda
