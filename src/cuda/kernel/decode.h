// The decode kernel's compiled instances, and their launch.
#pragma once

#include "cuda/kernel/combine.h"

namespace quire::cuda {

constexpr int kDecodeRecordBytes = 64 * 20;  // kMaxRecords TileRecords

// What selects an instance.
struct DecodeKey {
  DType kv = DType::kBFloat16;
  std::int32_t head_size = 0;
  std::int32_t head_size_v = 0;
  std::int32_t num_streams = 1;
  std::int32_t row_tiles = 1;
  std::int32_t heads = 1;      // kv heads of a block; more than 1: a wide kernel
  bool inline_scales = false;  // wide kernels: row scales follow their rows
  bool one_token = false;      // token kernels
  friend bool operator==(const DecodeKey&, const DecodeKey&) = default;
};

struct DecodeKernel {
  DecodeKey key;
  const void* function = nullptr;
  int blocks = 1;  // a multiprocessor
  int threads = 128;
  int shared_bytes = 0;  // without the table
  // The launch of the kernel that folds its partial results.
  Status (*combine)(const SplitParams& params, const Context& device, cudaStream_t stream) = launch_combine;
};

// Null if there is no such instance.
const DecodeKernel* find_decode_kernel(const DecodeKey& key);

// What a block of a launch for `num_seqs` requests takes.
std::int64_t decode_shared_bytes(const DecodeKernel& kernel, std::int32_t num_seqs);

// The grid is params.shape.num_groups groups of a block a kv head, or for the kv heads that a wide kernel's block
// takes.
Status launch_decode(const DecodeKernel& kernel, const SplitParams& params, cudaStream_t stream);

}  // namespace quire::cuda
