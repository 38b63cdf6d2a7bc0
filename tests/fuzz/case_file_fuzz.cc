// libFuzzer target: any bytes as an attention case, and as a trace.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "io/case_file.h"
#include "io/trace.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  auto file = quire::SafetensorsFile::from_bytes(std::as_bytes(std::span(data, size)), "fuzz");
  if (file.ok()) (void)quire::parse_attention_case(std::move(file).value());
  const auto trace = quire::parse_trace({reinterpret_cast<const char*>(data), size}, "fuzz");
  if (trace.ok()) (void)quire::draw_batch(*trace, {.num_decodes = 4, .num_prefills = 4});
  return 0;
}
