// What the functions over CommonAttentionMetadata share: its lengths by request, and the checks that come first.
#pragma once

#include <cstdint>
#include <string>

#include "quire/metadata.h"

namespace quire {

inline std::int32_t query_len_of(const CommonAttentionMetadata& common, std::int32_t req) {
  const auto i = static_cast<std::size_t>(req);
  return common.query_start_loc_cpu[i + 1] - common.query_start_loc_cpu[i];
}
inline std::int32_t seq_len_of(const CommonAttentionMetadata& common, std::int32_t req) {
  return common.seq_lens_cpu[static_cast<std::size_t>(req)];
}

// "seq_lens: request 3: "
inline std::string at_request(const char* argument, std::int64_t req) {
  return std::string(argument) + ": request " + std::to_string(req) + ": ";
}

inline bool is_on_host(const TensorView& tensor) { return tensor.device.type == DeviceType::kCpu; }

// The host arrays have num_reqs entries, starts grow from 0, seq_lens are not negative. Everything else in this folder
// may index them after this check.
Status check_host_arrays(const CommonAttentionMetadata& common);

// The block table is a host tensor int32 [>= num_reqs, *].
Status check_host_block_table(const CommonAttentionMetadata& common);

// The block that holds position `position` of request `req`, checked against the table's width and num_blocks. The
// table has passed check_host_block_table.
Result<std::int64_t> block_of(const CommonAttentionMetadata& common, std::int32_t req, std::int64_t position,
                              const BatchLimits& limits);

// The first `count` slots are in [-1, num_blocks * block_size); a host tensor.
Status check_slots(const CommonAttentionMetadata& common, const BatchLimits& limits, std::int64_t count);

}  // namespace quire
