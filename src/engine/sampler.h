// The choice of a token from a row of logits, and the random numbers for it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "quire/engine.h"
#include "quire/status.h"

namespace quire {

// A number in [0, 1) that depends on its arguments alone: the same token is drawn however a request is batched, cut,
// preempted or speculated on.
double uniform_at(std::uint64_t seed, std::uint64_t position);

// The index of the largest value, the first one of equals.
std::int32_t argmax(std::span<const float> logits);

// The `count` indices of the largest values, largest first, the lower index first among equals.
std::vector<std::int32_t> largest(std::span<const float> logits, std::int32_t count);

// A token and its chance under the parameters, in the order in which sample_token walks them.
struct Candidate {
  std::int32_t token = 0;
  double probability = 0.0;
};
// temperature > 0. The probabilities sum to 1.
std::vector<Candidate> sampling_candidates(std::span<const float> logits, const SamplingParams& params);

// The token at `position` of a sequence.
std::int32_t sample_token(std::span<const float> logits, const SamplingParams& params, std::int64_t position);

// Errors: values out of range.
Status check_sampling(const SamplingParams& params, std::int32_t vocab_size);

}  // namespace quire
