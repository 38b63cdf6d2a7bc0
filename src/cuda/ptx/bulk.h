// Bulk copies from global to shared memory, which the copy engine does by itself.
#pragma once

#include <cstdint>

namespace quire::cuda::ptx {

// Starts the copy of `bytes` that `barrier` counts; addresses and size are multiples of 16, `policy` is as of
// cp_async_16.
__device__ inline void copy_bulk(std::uint32_t shared, const void* global, std::uint32_t bytes, std::uint32_t barrier,
                                 std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], "
      "%4;" ::"r"(shared),
      "l"(global), "r"(bytes), "r"(barrier), "l"(policy)
      : "memory");
}

}  // namespace quire::cuda::ptx
