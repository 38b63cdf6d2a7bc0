// Fuzz target: any bytes as a safetensors file; every accepted tensor is read whole.
#include "io/safetensors.h"
#include "fuzz/scratch.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  const auto file = quire::SafetensorsFile::from_bytes(bytes, "fuzz");
  if (!file.ok()) return 0;
  unsigned sum = 0;
  for (const std::string& name : file->names()) {
    const auto tensor = file->tensor(name);
    if (!tensor.ok()) continue;
    const auto* first = tensor->as<const std::uint8_t>();
    const std::int64_t count = tensor->num_elements() * quire::dtype_bytes(tensor->dtype);
    for (std::int64_t i = 0; i < count; ++i) sum += first[i];
  }
  volatile unsigned sink = sum;
  (void)sink;
  return 0;
}
