// Runtime: where and how kernels run, and what is available for that on this machine.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "quire/status.h"

namespace quire {

// kReference is the float64 specification, kCpu the SIMD kernels, kCuda the GPU kernels.
enum class Backplane : std::uint8_t { kReference, kCpu, kCuda };
std::string_view backplane_name(Backplane backplane);  // "reference", "cpu", "cuda"
Result<Backplane> parse_backplane(std::string_view name);

enum class Isa : std::uint8_t { kScalar, kAvx2, kAvx512, kAvx512Bf16 };
std::string_view isa_name(Isa isa);  // "scalar", "avx2", "avx512", "avx512bf16"
Result<Isa> parse_isa(std::string_view name);
// ISAs that are compiled in and that this processor has, slowest first.
std::vector<Isa> available_isas();
// The ISA that QUIRE_ISA names (an unknown or missing one is an error), else the fastest available.
Result<Isa> default_isa();

// How CUDA kernels cut a row's keys. kBalanced gives every multiprocessor the same number of key tiles of the whole
// batch; kFixed cuts at multiples of kSplitTokens, so that a row has the same bits whatever it is batched with.
enum class KVSplits : std::uint8_t { kBalanced, kFixed };

struct Runtime {
  Backplane backplane = Backplane::kCpu;
  Isa isa = Isa::kScalar;                 // kCpu only
  int num_threads = 0;                    // kCpu only; 0: as OpenMP decides
  void* stream = nullptr;                 // kCuda only: the caller's cudaStream_t
  KVSplits splits = KVSplits::kBalanced;  // kCuda only
};
// kCpu with the default ISA and OpenMP's thread count.
Result<Runtime> default_runtime();

}  // namespace quire
