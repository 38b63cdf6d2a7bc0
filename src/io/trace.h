// Request traces of serving systems: how long prompts and answers were, and batches drawn from them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "quire/status.h"

namespace quire {

struct TraceRequest {
  std::int32_t context_tokens = 0;     // of the prompt
  std::int32_t generated_tokens = 0;   // of the answer
  double arrival_seconds = 0.0;        // since the trace's first request; 0 where the file has no times
  std::vector<std::int64_t> hash_ids;  // Mooncake: equal ids of leading 512-token blocks mean a shared prefix
};

// Reads the Azure CSV form (TIMESTAMP,ContextTokens,GeneratedTokens) or the Mooncake JSON lines form ("timestamp" in
// milliseconds, "input_length", "output_length", "hash_ids"), whichever the first line shows; times are optional.
// Errors (kDataLoss, kNotFound) name file and line: a missing column, a number that is negative or above 2^24, a line
// that is no record.
Result<std::vector<TraceRequest>> read_trace(const std::string& path);
Result<std::vector<TraceRequest>> parse_trace(std::string_view text, const std::string& name);

// One request of a batch: query_len new tokens at the end of seq_len.
struct BatchRequest {
  std::int32_t query_len = 0;
  std::int32_t seq_len = 0;
  friend bool operator==(const BatchRequest&, const BatchRequest&) = default;
};

// A batch as a serving system would see it at a random moment: requests drawn from the trace, decodes with a position
// uniform in their answer, prefills at a chunk uniform in their prompt. The same seed draws the same batch everywhere.
struct TraceDraw {
  std::int32_t num_decodes = 0;
  std::int32_t num_prefills = 0;
  std::int32_t prefill_chunk_tokens = 2048;  // new tokens of a prefill at most; 0: the whole prompt
  std::int32_t max_seq_len = 0;              // longer requests are cut; 0: as they are
  std::uint64_t seed = 0;
};
// Errors: an empty trace, negative counts.
Result<std::vector<BatchRequest>> draw_batch(std::span<const TraceRequest> trace, const TraceDraw& draw);

}  // namespace quire
