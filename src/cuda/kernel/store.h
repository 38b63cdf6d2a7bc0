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
  std::int32_t team_lanes = 32;   // of the packed kernels: lanes that share a row
  bool wide_cache = true;         // eight elements of a cache row can be stored at once, else four

  bool rotates() const { return rope.num_positions > 0; }
  // Warps or teams of a token: one for each q_head that is rotated and for each kv_head.
  QUIRE_HD std::int32_t rows_of_token() const { return rope.query.num_heads + store.key.num_heads; }
  QUIRE_HD std::int64_t num_tokens() const {
    return rope.num_positions > store.num_slots ? rope.num_positions : store.num_slots;
  }
};
Status launch_store(const StoreParams& params, cudaStream_t stream);

// The packed kernels, by the dtype of the source: eight elements a lane. False for a cache that is none of theirs; rows
// have been found fit by can_pack.
bool launch_packed_float32(const StoreParams& params, cudaStream_t stream);
bool launch_packed_float16(const StoreParams& params, cudaStream_t stream);
bool launch_packed_bfloat16(const StoreParams& params, cudaStream_t stream);

}  // namespace quire::cuda
