// The CPU kernels for scalar.
#include "cpu/simd/scalar.h"
//
#include "cpu/kernel/kernels.inl.h"
