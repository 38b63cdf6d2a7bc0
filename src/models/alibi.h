// The slopes of ALiBi, which checkpoints do not hold.
#pragma once

#include <cstdint>
#include <vector>

namespace quire {

// BLOOM's: the geometric sequence 2^(-8 i / n), i from 1, for the largest power of two n <= num_heads, and for the
// heads beyond it every second value of the sequence for 2 n.
std::vector<float> alibi_slopes(std::int32_t num_heads);
// MPT's: the sequence 2^(-8 i / n) for the smallest power of two n >= num_heads; where the two differ, the values at
// odd i come last.
std::vector<float> mpt_alibi_slopes(std::int32_t num_heads);

}  // namespace quire
