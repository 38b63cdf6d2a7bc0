// What this machine can do at best, measured for the roofline of quire bench.
#pragma once

#include "cli/bench/measure.h"
#include "quire/runtime.h"

namespace quire::cli {

// The best rates of all threads together, over windows too short for a shared machine to disturb all of them. Takes
// about a second.
Result<Ceilings> measure_machine(const Runtime& runtime);

}  // namespace quire::cli
