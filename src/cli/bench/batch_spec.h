// The batch-spec grammar of vLLM's attention benchmarks, and its published sets of batches.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/trace.h"
#include "quire/status.h"

namespace quire::cli {

// Segments joined by "_", each [COUNT]qQ[k][sS[k]]: COUNT requests (1) of Q new tokens whose sequence has S tokens (Q);
// k means times 1024. "q2k" is a prompt, "8q1s4k" eight decodes, "2q1k_32q1s1k" both in one batch. Errors name the
// segment: not of this form, zeros, S < Q, numbers above 2^24, more than 65536 requests.
Result<std::vector<BatchRequest>> parse_batch_spec(std::string_view text);
// The shortest spec of a batch; parse_batch_spec gives the batch back.
std::string batch_spec_string(std::span<const BatchRequest> batch);

// The specs of a published set; an unknown name is an error that lists the valid ones.
Result<std::vector<std::string>> batch_set(std::string_view name);

}  // namespace quire::cli
