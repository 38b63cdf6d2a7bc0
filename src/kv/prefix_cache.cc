// Block hashes and PrefixCache: which blocks hold the beginning of a sequence already.
#include <string>

#include "quire/block_pool.h"

namespace quire {
namespace {

// Odd constants without structure: the fractions of sqrt(2), sqrt(3), sqrt(5) and sqrt(7).
constexpr std::uint64_t kLowKey = 0x6a09e667f3bcc909u;
constexpr std::uint64_t kHighKey = 0xbb67ae8584caa73bu;
constexpr std::uint64_t kWordKey = 0x3c6ef372fe94f82bu;
constexpr std::uint64_t kEndKey = 0xa54ff53a5f1d36f1u;

// Both halves of the 128-bit product, folded: every bit of the result depends on every bit of both factors.
std::uint64_t fold_product(std::uint64_t a, std::uint64_t b) {
  __extension__ using Wide = unsigned __int128;
  const Wide product = static_cast<Wide>(a) * b;
  return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
}

std::uint64_t rotate(std::uint64_t value, int bits) { return (value << bits) | (value >> (64 - bits)); }

// Two lanes of 64 bits that take each word in differently and pass through each other.
struct Mixer {
  std::uint64_t low;
  std::uint64_t high;

  void add(std::uint64_t word) {
    const std::uint64_t mixed_low = fold_product(low ^ word, kLowKey ^ rotate(high, 29));
    const std::uint64_t mixed_high = fold_product(high ^ rotate(word, 32) ^ kWordKey, kHighKey ^ rotate(low, 17));
    // Adding the word keeps a product by zero from losing it.
    low = mixed_low + word;
    high = mixed_high ^ (word * kWordKey);
  }
};

}  // namespace

BlockHash hash_block(const BlockHash& parent, std::span<const std::int32_t> tokens, std::uint64_t extra_key) {
  Mixer mixer{parent.low ^ kLowKey, parent.high ^ kHighKey};
  mixer.add(extra_key);
  const auto word = [&](std::size_t i) { return static_cast<std::uint64_t>(static_cast<std::uint32_t>(tokens[i])); };
  std::size_t i = 0;
  for (; i + 1 < tokens.size(); i += 2) mixer.add(word(i) | word(i + 1) << 32);
  if (i < tokens.size()) mixer.add(word(i));
  mixer.add(tokens.size() ^ kEndKey);
  mixer.add(kEndKey);
  return {mixer.low, mixer.high};
}

std::vector<BlockHash> hash_blocks(std::span<const std::int32_t> tokens, std::int32_t block_size,
                                   std::uint64_t extra_key) {
  std::vector<BlockHash> hashes;
  if (block_size <= 0) return hashes;
  const auto size = static_cast<std::size_t>(block_size);
  hashes.reserve(tokens.size() / size);
  BlockHash parent;
  for (std::size_t begin = 0; begin + size <= tokens.size(); begin += size) {
    parent = hash_block(parent, tokens.subspan(begin, size), extra_key);
    hashes.push_back(parent);
  }
  return hashes;
}

Result<std::vector<BlockId>> PrefixCache::acquire_prefix(std::span<const std::int32_t> tokens,
                                                         std::uint64_t extra_key) {
  if (block_size_ <= 0) return invalid_argument("block_size: want > 0, got " + std::to_string(block_size_));
  const auto size = static_cast<std::size_t>(block_size_);
  std::vector<BlockId> found;
  BlockHash parent;
  // The last token is always computed, so a block that ends with it is not looked for.
  for (std::size_t begin = 0; begin + size < tokens.size(); begin += size) {
    parent = hash_block(parent, tokens.subspan(begin, size), extra_key);
    const std::optional<BlockId> block = pool_->find_cached(parent);
    if (!block) break;
    found.push_back(*block);
  }
  QUIRE_RETURN_IF_ERROR(pool_->retain(found));
  queried_tokens_ += static_cast<std::int64_t>(tokens.size());
  hit_tokens_ += static_cast<std::int64_t>(found.size() * size);
  return found;
}

Status PrefixCache::commit(std::span<const std::int32_t> tokens, std::span<const BlockId> blocks,
                           std::int64_t num_computed_tokens, std::uint64_t extra_key) {
  if (block_size_ <= 0) return invalid_argument("block_size: want > 0, got " + std::to_string(block_size_));
  if (num_computed_tokens < 0 || num_computed_tokens > static_cast<std::int64_t>(tokens.size())) {
    return out_of_range("num_computed_tokens: want [0, " + std::to_string(tokens.size()) + "], the tokens, got " +
                        std::to_string(num_computed_tokens));
  }
  const auto full_blocks = static_cast<std::size_t>(num_computed_tokens / block_size_);
  if (blocks.size() < full_blocks) {
    return out_of_range("blocks: want at least " + std::to_string(full_blocks) + " for " +
                        std::to_string(num_computed_tokens) + " tokens, got " + std::to_string(blocks.size()));
  }
  const auto size = static_cast<std::size_t>(block_size_);
  const std::vector<BlockHash> hashes = hash_blocks(tokens.first(full_blocks * size), block_size_, extra_key);
  return pool_->cache_blocks(blocks.first(full_blocks), hashes);
}

}  // namespace quire
