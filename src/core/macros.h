// Marks for code that is compiled for the host and for CUDA devices.
#pragma once

#if defined(__CUDACC__)
#define QUIRE_HD __host__ __device__
#define QUIRE_INLINE __forceinline__
#else
#define QUIRE_HD
#define QUIRE_INLINE inline __attribute__((always_inline))
#endif
