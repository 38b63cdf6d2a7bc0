// What the processor and the operating system let us run, asked once through cpuid and xgetbv.
#pragma once

namespace quire::cpu {

struct Features {
  bool avx2 = false;        // AVX2, FMA and F16C
  bool avx512 = false;      // AVX-512 F, BW, DQ, VL and VBMI
  bool avx512bf16 = false;  // the same and AVX512_BF16
};

const Features& features();

}  // namespace quire::cpu
