// Fuzz target: any bytes as an attention case.
#include "io/case_file.h"

#include "fuzz/scratch.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  auto file = quire::SafetensorsFile::from_bytes(std::as_bytes(std::span(data, size)), "fuzz");
  if (file.ok()) (void)quire::parse_attention_case(std::move(file).value());
  return 0;
}
