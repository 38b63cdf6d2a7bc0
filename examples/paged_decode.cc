// A prompt and a decode step on TRITON_ATTN, once with a float32 cache and once with an int8 cache of a quarter the
// size.
#include "attention_layer.h"

namespace {

constexpr int kPrompt = 100;

// Output of the token behind the prompt.
std::vector<float> decode_after_prompt(quire::KVCacheDType cache_dtype) {
  using example::kHeads;
  using example::kHeadSize;
  using example::kKvHeads;
  example::AttentionLayerExample layer("TRITON_ATTN", cache_dtype);
  quire::BlockPool pool = example::check(quire::BlockPool::create(example::kBlocks));
  example::Request request;
  request.blocks = example::check(pool.allocate((kPrompt + 1 + example::kBlockSize - 1) / example::kBlockSize));

  request.query_len = kPrompt;
  auto query = example::random_values(kPrompt * kHeads * kHeadSize, 1);
  auto key = example::random_values(kPrompt * kKvHeads * kHeadSize, 2);
  auto value = example::random_values(kPrompt * kKvHeads * kHeadSize, 3);
  layer.run({request}, query, key, value);

  request.context_len = kPrompt;
  request.query_len = 1;
  query = example::random_values(kHeads * kHeadSize, 4);
  key = example::random_values(kKvHeads * kHeadSize, 5);
  value = example::random_values(kKvHeads * kHeadSize, 6);
  return layer.run({request}, query, key, value);
}

}  // namespace

int main() {
  const auto exact = decode_after_prompt(quire::KVCacheDType::kAuto);
  const auto quantised = decode_after_prompt(quire::KVCacheDType::kInt8PerTokenHead);
  const double difference = example::largest_difference(exact, quantised);
  std::printf("decode after %d tokens: output[0] = %.6f with a float32 cache, %.6f with an int8 cache\n", kPrompt,
              static_cast<double>(exact[0]), static_cast<double>(quantised[0]));
  std::printf("largest difference %.4f\n", difference);
  return difference > 0.0 && difference < 0.05 ? 0 : 1;
}
