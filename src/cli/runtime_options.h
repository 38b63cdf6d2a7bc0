// The options that say where kernels run, shared by the subcommands that run them.
#pragma once

#include <string>
#include <vector>

#include "cli/command.h"
#include "quire/runtime.h"
#include "quire/status.h"

namespace quire::cli {

struct RuntimeOptions {
  std::string device = "cpu";
  std::string isa;  // empty: the default; "all": every one that can run here
  std::int32_t threads = 0;
};

void add_runtime_options(Usage& usage, RuntimeOptions& options);
// One runtime an ISA asked for. Errors: unknown names, an ISA or device that is not available here.
Result<std::vector<Runtime>> resolve_runtimes(const RuntimeOptions& options);
// "reference", "cpu/avx512", "cuda".
std::string runtime_name(const Runtime& runtime);

// Prints "quire: MESSAGE" to the standard error and returns the failure status.
int report(const Status& status);

}  // namespace quire::cli
