// Which ISA objects are compiled in, and which of them this processor can run.
#include "cpu/kernel_table.h"

#include "cpu/features.h"

namespace quire::cpu {

const KernelTable* kernel_table_scalar();
const KernelTable* kernel_table_avx2();
const KernelTable* kernel_table_avx512();
const KernelTable* kernel_table_avx512bf16();

namespace {

#if defined(QUIRE_WITH_AVX2)
constexpr bool kWithAvx2 = true;
#else
constexpr bool kWithAvx2 = false;
#endif
#if defined(QUIRE_WITH_AVX512)
constexpr bool kWithAvx512 = true;
#else
constexpr bool kWithAvx512 = false;
#endif
#if defined(QUIRE_WITH_AVX512BF16)
constexpr bool kWithAvx512Bf16 = true;
#else
constexpr bool kWithAvx512Bf16 = false;
#endif

}  // namespace

bool is_compiled(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return true;
    case Isa::kAvx2:
      return kWithAvx2;
    case Isa::kAvx512:
      return kWithAvx512;
    case Isa::kAvx512Bf16:
      return kWithAvx512Bf16;
  }
  return false;
}

const KernelTable* kernel_table(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return kernel_table_scalar();
    case Isa::kAvx2:
#if defined(QUIRE_WITH_AVX2)
      if (features().avx2) return kernel_table_avx2();
#endif
      break;
    case Isa::kAvx512:
#if defined(QUIRE_WITH_AVX512)
      if (features().avx512) return kernel_table_avx512();
#endif
      break;
    case Isa::kAvx512Bf16:
#if defined(QUIRE_WITH_AVX512BF16)
      if (features().avx512bf16) return kernel_table_avx512bf16();
#endif
      break;
  }
  return nullptr;
}

}  // namespace quire::cpu
