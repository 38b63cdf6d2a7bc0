// The cache update's kernels: rotation of queries and new keys, and the store of new rows, in one launch.
#pragma once

#include <cuda_runtime_api.h>

#include "core/macros.h"
#include "cuda/fault.h"
#include "kv/store.h"
#include "quire/status.h"

namespace quire::cuda {

struct StoreParams {
  StoreArgs store;
  RopeStoreArgs rope = {};  // num_positions 0: nothing is rotated
  FaultRecord* record = nullptr;
  std::int32_t block_shift = -1;  // log2 of the block size where it is a power of two

  bool rotates() const { return rope.num_positions > 0; }
  // Warps or teams of a token: one for each q_head that is rotated and for each kv_head.
  QUIRE_HD std::int32_t rows_of_token() const { return rope.query.num_heads + store.key.num_heads; }
  QUIRE_HD std::int64_t num_tokens() const {
    return rope.num_positions > store.num_slots ? rope.num_positions : store.num_slots;
  }
};
Status launch_store(const StoreParams& params, cudaStream_t stream);

// Steps from page to page, token to token and head to head, which K, V and their streams have in common.
struct PackedStrides {
  std::uint32_t page = 0;
  std::uint32_t token = 0;
  std::uint32_t head = 0;
};

// What packed kernels ask beside: that addresses inside a page are 32-bit numbers.
struct PackedParams {
  StoreParams base;
  PackedStrides rows;            // elements
  PackedStrides scales;          // floats
  std::int32_t team_lanes = 32;  // that share a row, a power of two
  std::int32_t team_shift = 5;   // its logarithm
  bool wide_cache = true;        // eight elements of a cache row can be stored at once, else four
};

// The packed kernels, by the dtype of the source: eight elements a lane. False for a cache that is none of theirs; rows
// have been found fit by can_pack.
bool launch_packed_float32(const PackedParams& params, cudaStream_t stream);
bool launch_packed_float16(const PackedParams& params, cudaStream_t stream);
bool launch_packed_bfloat16(const PackedParams& params, cudaStream_t stream);

}  // namespace quire::cuda
