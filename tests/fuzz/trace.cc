// Fuzz target: any text as a request trace, Azure CSV or Mooncake JSON lines, and batches drawn from it.
#include "io/trace.h"

#include "fuzz/scratch.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto trace = quire::parse_trace(quire::fuzz::text_of(data, size), "fuzz");
  if (trace.ok()) (void)quire::draw_batch(*trace, {.num_decodes = 4, .num_prefills = 4});
  return 0;
}
