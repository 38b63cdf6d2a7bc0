// What kernels report when metadata that lives on the device is wrong: one record a device, in memory that both sides
// see.
#pragma once

#include <cstdint>

namespace quire::cuda {

enum class Fault : std::uint32_t {
  kNone = 0,
  kWriting,     // a kernel is filling the record
  kQueryStart,  // query_start_loc is not monotone or leaves [0, num_tokens]
  kQueryLen,    // a request has more tokens than the longest of the plan
  kSeqLen,      // a seq_len is negative or beyond the block table
  kBlock,       // a block id is outside [0, num_blocks)
  kSlot,        // a slot is beyond num_blocks * block_size
  kPosition,    // a position is outside the cosine and sine table
  kWorkspace,   // the lengths on the device need more scratch than the plan's
};

struct FaultRecord {
  std::uint32_t fault = 0;
  std::int32_t index = 0;  // the request, or the token for slots and positions
  std::int64_t got = 0;
  std::int64_t limit = 0;
};

}  // namespace quire::cuda
