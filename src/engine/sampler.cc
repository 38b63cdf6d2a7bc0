// Implements the sampler. Cost: one pass over the vocabulary, a partial sort where top_k or top_p is given.
#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

namespace quire {
namespace {

// The finaliser of a 64-bit hash: every input bit reaches every output bit.
std::uint64_t mix(std::uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9u;
  x ^= x >> 27;
  x *= 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

constexpr std::uint64_t kGolden = 0x9e3779b97f4a7c15u;

// exp((logit - largest) / temperature) of each candidate, then cut to top_p and normalised.
void weigh(std::span<const float> logits, const SamplingParams& params, std::vector<Candidate>& candidates) {
  float top = logits[static_cast<std::size_t>(candidates.front().token)];
  for (const Candidate& one : candidates) top = std::max(top, logits[static_cast<std::size_t>(one.token)]);
  double total = 0.0;
  for (Candidate& one : candidates) {
    const double below = static_cast<double>(logits[static_cast<std::size_t>(one.token)]) - top;
    one.probability = std::exp(below / static_cast<double>(params.temperature));
    total += one.probability;
  }
  if (params.top_p < 1.0f) {
    double kept = 0.0;
    std::size_t count = 0;
    while (count < candidates.size() && (count == 0 || kept < static_cast<double>(params.top_p) * total)) {
      kept += candidates[count++].probability;
    }
    candidates.resize(count);
    total = kept;
  }
  for (Candidate& one : candidates) one.probability /= total;
}

}  // namespace

double uniform_at(std::uint64_t seed, std::uint64_t position) {
  const std::uint64_t bits = mix(mix(seed + kGolden) ^ mix((position + 1) * kGolden));
  return static_cast<double>(bits >> 11) * 0x1.0p-53;
}

std::int32_t argmax(std::span<const float> logits) {
  return static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

std::vector<std::int32_t> largest(std::span<const float> logits, std::int32_t count) {
  std::vector<std::int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto kept = std::min<std::size_t>(static_cast<std::size_t>(count), order.size());
  const auto before = [logits](std::int32_t a, std::int32_t b) {
    const float x = logits[static_cast<std::size_t>(a)];
    const float y = logits[static_cast<std::size_t>(b)];
    return x != y ? x > y : a < b;
  };
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(kept), order.end(), before);
  order.resize(kept);
  return order;
}

std::vector<Candidate> sampling_candidates(std::span<const float> logits, const SamplingParams& params) {
  const bool cut = params.top_k > 0 || params.top_p < 1.0f;
  const auto count = params.top_k > 0 ? params.top_k : static_cast<std::int32_t>(logits.size());
  std::vector<Candidate> candidates;
  if (cut) {
    for (const std::int32_t token : largest(logits, count)) candidates.push_back({token, 0.0});
  } else {
    candidates.resize(logits.size());
    for (std::size_t i = 0; i < logits.size(); ++i) candidates[i].token = static_cast<std::int32_t>(i);
  }
  weigh(logits, params, candidates);
  return candidates;
}

std::int32_t sample_token(std::span<const float> logits, const SamplingParams& params, std::int64_t position) {
  if (params.temperature <= 0.0f) return argmax(logits);
  const std::vector<Candidate> candidates = sampling_candidates(logits, params);
  double left = uniform_at(params.seed, static_cast<std::uint64_t>(position));
  for (const Candidate& one : candidates) {
    left -= one.probability;
    if (left < 0.0) return one.token;
  }
  return std::max_element(candidates.begin(), candidates.end(),
                          [](const Candidate& a, const Candidate& b) { return a.probability < b.probability; })
      ->token;
}

Status check_sampling(const SamplingParams& params, std::int32_t vocab_size) {
  if (!(params.temperature >= 0.0f) || std::isinf(params.temperature)) {
    return invalid_argument("temperature: want a finite number >= 0, got " + std::to_string(params.temperature));
  }
  if (params.top_k < 0) return invalid_argument("top_k: want >= 0, got " + std::to_string(params.top_k));
  if (!(params.top_p > 0.0f) || params.top_p > 1.0f) {
    return invalid_argument("top_p: want (0, 1], got " + std::to_string(params.top_p));
  }
  if (params.max_tokens < 1) {
    return invalid_argument("max_tokens: want at least 1, got " + std::to_string(params.max_tokens));
  }
  for (const std::int32_t token : params.stop_tokens) {
    if (token >= 0 && token < vocab_size) continue;
    return out_of_range("stop_tokens: want [0, " + std::to_string(vocab_size) + "), got " + std::to_string(token));
  }
  for (const std::string& text : params.stop_strings) {
    if (text.empty()) return invalid_argument("stop_strings: want text, got an empty string");
  }
  return {};
}

}  // namespace quire
