// How a batch falls into decodes, extends and prefills, and the swaps that sort it that way.
#include <algorithm>

#include "plan/batch.h"

namespace quire {
namespace {

// A request that goes through decode kernels but stands behind one that does not. Fresh prompts are prefills to the
// reordering whatever their length, and padding has no tokens.
bool is_misplaced_decode(const CommonAttentionMetadata& common, std::int32_t req, std::int32_t threshold) {
  const std::int32_t query_len = query_len_of(common, req);
  return query_len > 0 && query_len <= threshold && seq_len_of(common, req) > query_len;
}

Status check_decodes_in_front(const CommonAttentionMetadata& common, std::int32_t first_prefill,
                              std::int32_t threshold) {
  for (std::int32_t req = first_prefill; req < common.num_reqs; ++req) {
    if (!is_misplaced_decode(common, req, threshold)) continue;
    return invalid_argument(at_request("batch order", req) + "want decodes (at most " + std::to_string(threshold) +
                            " new tokens) in front, got one of " + std::to_string(query_len_of(common, req)) +
                            " behind request " + std::to_string(first_prefill) + " with " +
                            std::to_string(query_len_of(common, first_prefill)));
  }
  return {};
}

DecodePrefillSplit split_at(const CommonAttentionMetadata& common, std::int32_t first_prefill) {
  const std::int32_t decode_tokens = common.query_start_loc_cpu[static_cast<std::size_t>(first_prefill)];
  return {.num_decodes = first_prefill,
          .num_prefills = common.num_reqs - first_prefill,
          .num_decode_tokens = decode_tokens,
          .num_prefill_tokens = common.num_actual_tokens - decode_tokens};
}

DecodePrefillSplit all_decodes(const CommonAttentionMetadata& common) {
  return {.num_decodes = common.num_reqs, .num_decode_tokens = common.num_actual_tokens};
}

// All requests with tokens have as many as the first, or the first that differs starts the prefills.
Result<DecodePrefillSplit> split_uniform(const CommonAttentionMetadata& common, std::int32_t threshold) {
  const std::int32_t first_len = query_len_of(common, 0);
  if (first_len > threshold) return split_at(common, 0);
  std::int32_t first_other = common.num_reqs;
  bool equal_or_empty = true;
  for (std::int32_t req = common.num_reqs - 1; req > 0; --req) {
    const std::int32_t query_len = query_len_of(common, req);
    if (query_len == first_len) continue;
    first_other = req;
    equal_or_empty = equal_or_empty && query_len == 0;
  }
  if (!equal_or_empty) return split_at(common, first_other);
  // A padded batch counts the tokens of its padding requests too.
  const std::int64_t padded = static_cast<std::int64_t>(common.num_reqs) * first_len;
  if (common.num_actual_tokens != common.query_start_loc_cpu.back() && common.num_actual_tokens != padded) {
    return invalid_argument("num_actual_tokens: want " + std::to_string(common.query_start_loc_cpu.back()) + " or " +
                            std::to_string(padded) + " for uniform decodes, got " +
                            std::to_string(common.num_actual_tokens));
  }
  return all_decodes(common);
}

std::int32_t entry_or_zero(std::span<const std::int32_t> values, std::size_t index) {
  return index < values.size() ? values[index] : 0;
}

using Swaps = std::vector<std::pair<std::int32_t, std::int32_t>>;

// Decodes at the back change places with prefills in front until they meet.
Swaps two_region_swaps(const ReorderInput& input) {
  std::vector<std::int32_t> decodes;
  std::vector<std::int32_t> prefills;
  for (std::size_t req = 0; req < input.num_scheduled_tokens.size(); ++req) {
    const bool is_decode = input.num_scheduled_tokens[req] <= input.decode_threshold;
    (is_decode ? decodes : prefills).push_back(static_cast<std::int32_t>(req));
  }
  Swaps swaps;
  for (std::size_t i = 0; i < std::min(decodes.size(), prefills.size()); ++i) {
    const std::int32_t decode = decodes[decodes.size() - 1 - i];
    if (decode < static_cast<std::int32_t>(decodes.size())) break;
    swaps.emplace_back(prefills[i], decode);
  }
  return swaps;
}

// Where a request belongs: regions are sorted ascending.
int region_of(const ReorderInput& input, std::size_t req, ReorderForm form) {
  const bool has_context = entry_or_zero(input.num_computed_tokens, req) > 0;
  const bool is_short = input.num_scheduled_tokens[req] <= input.decode_threshold;
  if (form == ReorderForm::kPrefillsFirst) return has_context && is_short ? 1 : 0;
  if (!has_context) return 2;
  return is_short ? 0 : 1;
}

// Requests that already stand in their region stay; the others are dealt, in order, to the places that are left.
Swaps region_swaps(const ReorderInput& input, ReorderForm form) {
  const std::size_t num_reqs = input.num_scheduled_tokens.size();
  std::vector<int> regions(num_reqs);
  for (std::size_t req = 0; req < num_reqs; ++req) regions[req] = region_of(input, req, form);
  std::vector<int> sorted = regions;
  std::sort(sorted.begin(), sorted.end());
  std::vector<std::size_t> places;
  for (std::size_t req = 0; req < num_reqs; ++req) {
    if (regions[req] != sorted[req]) places.push_back(req);
  }
  std::vector<std::size_t> sources = places;
  std::stable_sort(sources.begin(), sources.end(),
                   [&](std::size_t a, std::size_t b) { return regions[a] < regions[b]; });
  std::vector<std::size_t> target(num_reqs);
  for (std::size_t req = 0; req < num_reqs; ++req) target[req] = req;
  for (std::size_t i = 0; i < places.size(); ++i) target[sources[i]] = places[i];
  Swaps swaps;
  for (std::size_t source : sources) {
    // After each swap the request that stood at the target stands at `source` and wants to go on.
    while (target[source] != source) {
      const std::size_t to = target[source];
      swaps.emplace_back(static_cast<std::int32_t>(source), static_cast<std::int32_t>(to));
      target[source] = target[to];
      target[to] = to;
    }
  }
  return swaps;
}

}  // namespace

Result<DecodePrefillSplit> split_decodes_and_prefills(const CommonAttentionMetadata& common,
                                                      std::int32_t decode_threshold, DecodeUniformity uniformity) {
  QUIRE_RETURN_IF_ERROR(check_host_arrays(common));
  if (common.num_reqs == 0) return DecodePrefillSplit{};
  if (uniformity == DecodeUniformity::kUniform && decode_threshold > 1) return split_uniform(common, decode_threshold);
  std::int32_t first_prefill = 0;
  while (first_prefill < common.num_reqs && query_len_of(common, first_prefill) <= decode_threshold) ++first_prefill;
  if (first_prefill == common.num_reqs) return all_decodes(common);
  QUIRE_RETURN_IF_ERROR(check_decodes_in_front(common, first_prefill, decode_threshold));
  return split_at(common, first_prefill);
}

Result<DecodePrefillExtendSplit> split_decodes_prefills_and_extends(const CommonAttentionMetadata& common,
                                                                    std::int32_t decode_threshold) {
  QUIRE_ASSIGN_OR_RETURN(const DecodePrefillSplit split, split_decodes_and_prefills(common, decode_threshold));
  const auto is_extend = [&](std::int32_t req) {
    return query_len_of(common, req) > decode_threshold && seq_len_of(common, req) != query_len_of(common, req);
  };
  const auto is_prefill = [&](std::int32_t req) {
    return query_len_of(common, req) > decode_threshold && seq_len_of(common, req) == query_len_of(common, req);
  };
  std::int32_t first_prefill = split.num_decodes;
  while (first_prefill < common.num_reqs && !is_prefill(first_prefill)) ++first_prefill;
  for (std::int32_t req = first_prefill; req < common.num_reqs; ++req) {
    if (!is_extend(req)) continue;
    return invalid_argument(at_request("batch order", req) + "want extends before prefills, got " +
                            std::to_string(seq_len_of(common, req) - query_len_of(common, req)) +
                            " tokens of context behind the prefill request " + std::to_string(first_prefill));
  }
  DecodePrefillExtendSplit out;
  out.num_decodes = split.num_decodes;
  out.num_decode_tokens = split.num_decode_tokens;
  out.num_extends = first_prefill - split.num_decodes;
  out.num_prefills = common.num_reqs - first_prefill;
  if (out.num_prefills > 0) {
    out.num_extend_tokens =
        common.query_start_loc_cpu[static_cast<std::size_t>(first_prefill)] - split.num_decode_tokens;
  } else {
    out.num_extend_tokens = split.num_prefill_tokens;
  }
  out.num_prefill_tokens = split.num_prefill_tokens - out.num_extend_tokens;
  return out;
}

std::vector<std::pair<std::int32_t, std::int32_t>> reorder_swaps(const ReorderInput& input, ReorderForm form) {
  return form == ReorderForm::kTwoRegions ? two_region_swaps(input) : region_swaps(input, form);
}

}  // namespace quire
