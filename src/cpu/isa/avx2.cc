// The CPU kernels for avx2.
#include "cpu/simd/avx2.h"
//
#include "cpu/kernel/kernels.inl.h"
