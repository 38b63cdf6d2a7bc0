// quire bench --engine: a trace's requests, served by the engine at the times at which they came.
#pragma once

#include <cstdint>
#include <string>

#include "cli/command.h"
#include "cli/generate_options.h"

namespace quire::cli {

struct EngineBench {
  bool engine = false;
  GenerateOptions options;
  std::string trace;
  std::int32_t requests = 64;
  double time_scale = 1.0;
  double length_scale = 0.0;
  std::string format = "text";
  std::string svg;
};

// --engine and what only it takes; the rest is filled in from the options of quire bench.
void add_engine_bench_options(Usage& usage, EngineBench& bench);
Result<int> run_engine_bench(const EngineBench& bench);

}  // namespace quire::cli
