// Where a logit is: the position pair and the rows of a tile, as the terms see them.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace quire {

// Keys [begin, end) of a sequence.
struct KeyRange {
  std::int32_t begin = 0;
  std::int32_t end = 0;

  QUIRE_HD bool is_empty() const { return begin >= end; }
};

// Consecutive query rows of one sequence.
struct RowSpan {
  std::int32_t first_row = 0;  // inside the sequence
  std::int32_t last_row = 0;   // inclusive
  std::int32_t context_len = 0;

  QUIRE_HD std::int32_t first_q_pos() const { return context_len + first_row; }
  QUIRE_HD std::int32_t last_q_pos() const { return context_len + last_row; }
};

// One query row and q_head against the key positions of the lanes of N.
template <class N>
struct At {
  typename N::I kv_pos;
  std::int32_t q_pos = 0;
  std::int32_t row = 0;  // q_pos - context_len
  std::int32_t context_len = 0;
  std::int32_t q_head = 0;
};

QUIRE_HD inline std::int32_t min_i32(std::int32_t a, std::int32_t b) { return a < b ? a : b; }
QUIRE_HD inline std::int32_t max_i32(std::int32_t a, std::int32_t b) { return a > b ? a : b; }

// Floor division for a positive divisor; positions of graph-capture dummies can be negative.
QUIRE_HD inline std::int32_t floor_div(std::int32_t a, std::int32_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

}  // namespace quire
