// The CPU kernels for avx512.
#include "cpu/simd/avx512.h"
//
#include "cpu/kernel/kernels.inl.h"
