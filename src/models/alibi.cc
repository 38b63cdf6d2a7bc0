// Computes the slopes of ALiBi in both forms that checkpoints mean.
#include "models/alibi.h"

#include <bit>
#include <cmath>

namespace quire {
namespace {

float slope(std::uint32_t index, std::uint32_t count) {
  return std::exp2(-8.0f * static_cast<float>(index) / static_cast<float>(count));
}

}  // namespace

std::vector<float> alibi_slopes(std::int32_t num_heads) {
  const auto heads = static_cast<std::uint32_t>(num_heads);
  const std::uint32_t count = std::bit_floor(heads);
  std::vector<float> out;
  for (std::uint32_t i = 1; i <= count; ++i) out.push_back(slope(i, count));
  for (std::uint32_t i = 1; out.size() < heads; i += 2) out.push_back(slope(i, 2 * count));
  return out;
}

std::vector<float> mpt_alibi_slopes(std::int32_t num_heads) {
  const auto heads = static_cast<std::uint32_t>(num_heads);
  const std::uint32_t count = std::bit_ceil(heads);
  std::vector<float> out;
  if (count == heads) {
    for (std::uint32_t i = 1; i <= count; ++i) out.push_back(slope(i, count));
    return out;
  }
  for (std::uint32_t i = 2; i <= count && out.size() < heads; i += 2) out.push_back(slope(i, count));
  for (std::uint32_t i = 1; i <= count && out.size() < heads; i += 2) out.push_back(slope(i, count));
  return out;
}

}  // namespace quire
