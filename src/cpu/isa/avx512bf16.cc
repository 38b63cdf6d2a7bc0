// The CPU kernels for avx512bf16.
#include "cpu/simd/avx512bf16.h"
//
#include "cpu/kernel/kernels.inl.h"
