// Computes the slopes of ALiBi in both forms that checkpoints mean.
#include "models/alibi.h"

#include <bit>
#include <cmath>

namespace quire {
namespace {

float slope(std::uint32_t index, std::uint32_t count, float max) {
  return std::exp2(-max * static_cast<float>(index) / static_cast<float>(count));
}

}  // namespace

std::vector<float> alibi_slopes(std::int32_t num_heads) {
  const auto heads = static_cast<std::uint32_t>(num_heads);
  const std::uint32_t count = std::bit_floor(heads);
  std::vector<float> out;
  for (std::uint32_t i = 1; i <= count; ++i) out.push_back(slope(i, count, 8.0f));
  for (std::uint32_t i = 1; out.size() < heads; i += 2) out.push_back(slope(i, 2 * count, 8.0f));
  return out;
}

std::vector<float> mpt_alibi_slopes(std::int32_t num_heads, float max) {
  const auto heads = static_cast<std::uint32_t>(num_heads);
  const std::uint32_t count = std::bit_ceil(heads);
  std::vector<float> out;
  if (count == heads) {
    for (std::uint32_t i = 1; i <= count; ++i) out.push_back(slope(i, count, max));
    return out;
  }
  for (std::uint32_t i = 2; i <= count && out.size() < heads; i += 2) out.push_back(slope(i, count, max));
  for (std::uint32_t i = 1; i <= count && out.size() < heads; i += 2) out.push_back(slope(i, count, max));
  return out;
}

}  // namespace quire
