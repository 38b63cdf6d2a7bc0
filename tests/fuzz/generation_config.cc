// Fuzz target: any text as generation_config.json, and as the config.json that stands in for it.
#include "engine/generation_config.h"
#include "fuzz/scratch.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const quire::fuzz::ScratchFolder folder;
  static const quire::fuzz::ScratchFolder empty;
  const std::string_view text = quire::fuzz::text_of(data, size);
  const auto config = quire::HfConfig::parse(text, "config.json");
  if (config.ok()) (void)quire::read_generation_config(empty.path(), *config);
  folder.write("generation_config.json", text);
  static const auto nothing = quire::HfConfig::parse("{}", "config.json");
  (void)quire::read_generation_config(folder.path(), *nothing);
  return 0;
}
