// Bulk copies of boxes of a tensor to shared memory, which the copy engine does by itself.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace quire::cuda::ptx {

__device__ inline void prefetch_tensor_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Starts the copy of the box at these coordinates, innermost first, whose bytes `barrier` counts. What lies outside of
// the tensor becomes zero.
__device__ inline void load_box(std::uint32_t shared, const CUtensorMap* map, std::uint32_t barrier,
                                const std::int32_t (&c)[5]) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(shared),
      "l"(map), "r"(barrier), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]), "r"(c[4])
      : "memory");
}

}  // namespace quire::cuda::ptx
