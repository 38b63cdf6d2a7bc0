// The machine's ceilings, as the library measures them.
#include "cli/bench/ceilings.h"

#include "cpu/ceilings.h"
#include "cuda/timing.h"

namespace quire::cli {

Result<Ceilings> measure_machine(const Runtime& runtime) {
  if (runtime.backplane == Backplane::kCuda) {
    QUIRE_ASSIGN_OR_RETURN(const cuda::DeviceCeilings measured, cuda::measure_ceilings(runtime.stream));
    return Ceilings{.float32_flops = measured.float32_flops,
                    .bfloat16_flops = measured.half_flops,
                    .dram_bytes = measured.read_bytes,
                    .copy_bytes = measured.copy_bytes,
                    .launch_seconds = measured.launch_seconds};
  }
  QUIRE_ASSIGN_OR_RETURN(const cpu::Ceilings measured, cpu::measure_ceilings(runtime.num_threads));
  constexpr double kGiga = 1e9;
  return Ceilings{.float32_flops = measured.fma_all.best * kGiga,
                  .bfloat16_flops = measured.bf16_all.best * kGiga,
                  .dram_bytes = measured.read_all.best * kGiga};
}

}  // namespace quire::cli
