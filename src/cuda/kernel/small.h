// Batches of so few row tiles that warps find their work themselves, an entry a lane, without a kernel before.
#pragma once

#include "cuda/kernel/split.h"

namespace quire::cuda {

QUIRE_HD inline bool is_small(const ScheduleShape& shape) { return !shape.is_fixed() && shape.num_entries <= 32; }

}  // namespace quire::cuda
