// --device, --isa and --threads.
#include "cli/runtime_options.h"

#include <algorithm>
#include <iostream>

#include "cli/table.h"
#include "quire/cuda.h"

namespace quire::cli {
namespace {

constexpr std::int32_t kMaxThreads = 4096;

}  // namespace

void add_runtime_options(Usage& usage, RuntimeOptions& options) {
  usage.options.push_back({"--device", &options.device, "cpu, cuda or reference (float64)"});
  usage.options.push_back({"--isa", &options.isa,
                           "scalar, avx2, avx512 or avx512bf16; all: each that can run here (default: QUIRE_ISA, else "
                           "the fastest)"});
  usage.options.push_back({"--threads", &options.threads, "CPU threads; 0: as OpenMP decides"});
}

Result<std::vector<Runtime>> resolve_runtimes(const RuntimeOptions& options) {
  Runtime runtime;
  QUIRE_ASSIGN_OR_RETURN(runtime.backplane, parse_backplane(options.device));
  if (runtime.backplane == Backplane::kCuda) QUIRE_RETURN_IF_ERROR(cuda::device_info().status());
  if (options.threads < 0 || options.threads > kMaxThreads) {
    return invalid_argument("threads: want 0 to " + std::to_string(kMaxThreads) + ", got " +
                            std::to_string(options.threads));
  }
  runtime.num_threads = options.threads;
  if (runtime.backplane != Backplane::kCpu) {
    if (!options.isa.empty()) return invalid_argument("isa: only --device cpu has instruction sets");
    return std::vector{runtime};
  }
  const std::vector<Isa> available = available_isas();
  std::vector<Runtime> out;
  if (options.isa == "all") {
    for (const Isa isa : available) {
      runtime.isa = isa;
      out.push_back(runtime);
    }
    return out;
  }
  if (options.isa.empty()) {
    QUIRE_ASSIGN_OR_RETURN(runtime.isa, default_isa());
  } else {
    QUIRE_ASSIGN_OR_RETURN(runtime.isa, parse_isa(options.isa));
  }
  if (std::find(available.begin(), available.end(), runtime.isa) == available.end()) {
    std::vector<std::string> names;
    for (const Isa isa : available) names.emplace_back(isa_name(isa));
    return unsupported("isa: want one of " + join(names, ", ") + " on this machine, got " +
                       std::string(isa_name(runtime.isa)));
  }
  out.push_back(runtime);
  return out;
}

std::string runtime_name(const Runtime& runtime) {
  std::string name(backplane_name(runtime.backplane));
  if (runtime.backplane == Backplane::kCpu) name += "/" + std::string(isa_name(runtime.isa));
  return name;
}

int report(const Status& status) {
  std::cerr << "quire: " << status.message() << '\n';
  return kExitFailure;
}

}  // namespace quire::cli
