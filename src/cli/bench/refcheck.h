// Compares some rows of a benchmark's last output with the float64 reference.
#pragma once

#include "cli/bench/problem.h"
#include "quire/status.h"

namespace quire::cli {

struct RefCheck {
  std::int32_t rows = 0;
  double nmse = 0.0;  // squared error over squared answer, summed over the rows
  double limit = 0.0;
  bool passed() const { return nmse <= limit; }  // not if it is NaN
};

// Rows are taken from the first, the middle and the last requests, their last and middle tokens. Each becomes a request
// of one token at its own position, which causal attention answers alike.
Result<RefCheck> check_against_reference(const BenchProblem& problem);

}  // namespace quire::cli
