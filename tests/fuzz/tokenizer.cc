// Fuzz target: any text as tokenizer.json; what loads encodes and decodes a short text of many kinds of characters.
#include "io/tokenizer/tokenizer.h"

#include "fuzz/scratch.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  constexpr std::string_view kText =
      "The cat's  12,345 caf\u00e9s \u2014\t\u4e2d\u6587 e\u0301\U0001F600\r\n\n [CLS] don't <|end|>   \xff a_b2C!? ";
  const auto tokenizer = quire::Tokenizer::parse(quire::fuzz::text_of(data, size), "fuzz");
  if (!tokenizer.ok()) return 0;
  const auto ids = tokenizer->encode(kText);
  if (!ids.ok()) return 0;
  (void)tokenizer->decode(*ids);
  (void)tokenizer->decode(*ids, quire::SkipSpecialTokens::kNo);
  quire::StreamDecoder stream(*tokenizer);
  for (const std::int32_t id : *ids) {
    if (!stream.add(id).ok()) return 0;
  }
  (void)stream.finish();
  return 0;
}
