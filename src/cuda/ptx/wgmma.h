// wgmma: products of a warpgroup's 64 rows, asynchronous, with float32 sums in registers.
//
// Element 4 * n + i of a thread's sums is row lane / 4 + 8 * (i / 2) of its warp's 16 and column 8 * n + lane % 4 * 2 +
// i % 2, as in mma.sync.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace quire::cuda::ptx {

// A matrix in shared memory of rows of 128 bytes, swizzled in atoms of 8 rows that start at multiples of 1024 bytes;
// the next 8 rows are `next_rows` bytes away. Where rows do not run along the summed dimension, `next_columns` is how
// far away the next 64 elements of them are.
__device__ inline std::uint64_t matrix_descriptor(std::uint32_t shared, std::uint32_t next_rows,
                                                  std::uint32_t next_columns = 16) {
  return (std::uint64_t{1} << 62) | (static_cast<std::uint64_t>(next_rows >> 4) << 32) |
         (static_cast<std::uint64_t>(next_columns >> 4) << 16) | ((shared & 0x3ffff) >> 4);
}

// The same matrix, `bytes` (a multiple of 16) further on.
__device__ inline std::uint64_t moved(std::uint64_t descriptor, std::uint32_t bytes) {
  return (descriptor & 0xffffffff00000000u) | (static_cast<std::uint32_t>(descriptor) + bytes / 16);
}

// Orders registers that were written before with the products that follow.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most kPending of the latest groups are under way.
template <int kPending>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving uses of registers over this point.
template <int kCount>
__device__ inline void pin(float (&values)[kCount]) {
#pragma unroll
  for (float& value : values) asm volatile("" : "+f"(value)::"memory");
}

// The sums of an instruction's text and of its operands, 32 or 64 a thread.
#define QUIRE_WGMMA_TEXT_32                                                                                   \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, " \
  "%23, %24, %25, %26, %27, %28, %29, %30, %31"
#define QUIRE_WGMMA_TEXT_64                                                                                     \
  QUIRE_WGMMA_TEXT_32                                                                                           \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, " \
  "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define QUIRE_WGMMA_EIGHT(i)                                                                                  \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
#define QUIRE_WGMMA_SUMS_32 QUIRE_WGMMA_EIGHT(0), QUIRE_WGMMA_EIGHT(8), QUIRE_WGMMA_EIGHT(16), QUIRE_WGMMA_EIGHT(24)
#define QUIRE_WGMMA_SUMS_64 \
  QUIRE_WGMMA_SUMS_32, QUIRE_WGMMA_EIGHT(32), QUIRE_WGMMA_EIGHT(40), QUIRE_WGMMA_EIGHT(48), QUIRE_WGMMA_EIGHT(56)

// A product of T with `count` sums a thread; `columns`, `add` and `operands` are parts of its text, the inputs follow.
#define QUIRE_WGMMA_OF(dtype, count, columns, add, operands, ...)                                        \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " add ", 0;\nwgmma.mma_async.sync.aligned.m64n" columns \
               "k16.f32." dtype "." dtype " {" QUIRE_WGMMA_TEXT_##count "}, " operands ";\n}"            \
               : QUIRE_WGMMA_SUMS_##count                                                                \
               : __VA_ARGS__, "r"(static_cast<int>(add_to_sums)))
#define QUIRE_WGMMA(count, columns, add, operands, ...)                 \
  if constexpr (__is_same(T, __nv_bfloat16)) {                          \
    QUIRE_WGMMA_OF("bf16", count, columns, add, operands, __VA_ARGS__); \
  } else {                                                              \
    QUIRE_WGMMA_OF("f16", count, columns, add, operands, __VA_ARGS__);  \
  }

// sums (+)= a (64 x 16, in shared memory) * b (64 columns x 16, rows along the 16).
template <class T>
__device__ inline void wgmma_shared(float (&d)[32], std::uint64_t a, std::uint64_t b, bool add_to_sums) {
  QUIRE_WGMMA(32, "64", "%34", "%32, %33, p, 1, 1, 0, 0", "l"(a), "l"(b))
}

// sums (+)= a (64 x 16, in registers as of mma_16816) * b (16 x 64 columns, rows along the columns).
template <class T>
__device__ inline void wgmma_registers(float (&d)[32], const std::uint32_t (&a)[4], std::uint64_t b, bool add_to_sums) {
  QUIRE_WGMMA(32, "64", "%37", "{%32, %33, %34, %35}, %36, p, 1, 1, 1", "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]),
              "l"(b))
}

// sums (+)= a (64 x 16, in shared memory) * b (128 columns x 16, rows along the 16).
template <class T>
__device__ inline void wgmma_shared(float (&d)[64], std::uint64_t a, std::uint64_t b, bool add_to_sums) {
  QUIRE_WGMMA(64, "128", "%66", "%64, %65, p, 1, 1, 0, 0", "l"(a), "l"(b))
}

// sums (+)= a (64 x 16, in registers as of mma_16816) * b (16 x 128 columns, rows along the columns).
template <class T>
__device__ inline void wgmma_registers(float (&d)[64], const std::uint32_t (&a)[4], std::uint64_t b, bool add_to_sums) {
  QUIRE_WGMMA(64, "128", "%69", "{%64, %65, %66, %67}, %68, p, 1, 1, 1", "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]),
              "l"(b))
}

#undef QUIRE_WGMMA
#undef QUIRE_WGMMA_OF
#undef QUIRE_WGMMA_SUMS_64
#undef QUIRE_WGMMA_SUMS_32
#undef QUIRE_WGMMA_EIGHT
#undef QUIRE_WGMMA_TEXT_64
#undef QUIRE_WGMMA_TEXT_32

}  // namespace quire::cuda::ptx
