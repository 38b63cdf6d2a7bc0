// Fuzz target: any text as a token tree: choices, chain:N, grow:...
#include "quire/tree.h"
#include "cli/generate_options.h"
#include "fuzz/scratch.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text = quire::fuzz::text_of(data, size);
  (void)quire::TokenTree::parse(text);
  (void)quire::cli::parse_tree_policy(text);
  return 0;
}
