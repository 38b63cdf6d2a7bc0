// Fuzz target: any text as a file of requests for `quire generate --batch`, with their trees.
#include "cli/generate_batch.h"
#include "cli/generate_options.h"
#include "fuzz/scratch.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const quire::fuzz::ScratchFolder folder;
  const auto lines = quire::cli::read_batch(folder.write("batch.jsonl", quire::fuzz::text_of(data, size)), {});
  if (!lines.ok()) return 0;
  for (const quire::cli::BatchLine& line : *lines) (void)quire::cli::parse_tree_policy(line.tree);
  return 0;
}
