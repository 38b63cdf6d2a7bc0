// Tree: rows of a request that carries draft tokens see the context and, among the new tokens, their ancestors only.
#pragma once

#include <cstdint>

#include "variant/at.h"

namespace quire::terms {

struct Tree {
  std::int32_t size = 0;                // rows of this request's tree; 0: none
  const std::uint64_t* mask = nullptr;  // [size, ceil(size / 64)]
  const float* bias = nullptr;          // optional [size, size]

  QUIRE_HD bool active() const { return size > 0; }
  QUIRE_HD std::int32_t words() const { return (size + 63) / 64; }

  template <class N>
  QUIRE_HD typename N::F logit(typename N::F s, const At<N>& at) const {
    if (bias == nullptr || at.row >= size) return s;
    return s + N::lookup(bias + static_cast<std::int64_t>(at.row) * size, at.kv_pos - at.context_len, size);
  }
  template <class N>
  QUIRE_HD typename N::M keep(const At<N>& at) const {
    const auto node = at.kv_pos - at.context_len;
    if (at.row >= size) return node < at.row + 1;
    return (node < size) & N::test_bit(mask + static_cast<std::int64_t>(at.row) * words(), N::clamp_below(node, size));
  }
  QUIRE_HD KeyRange interior(KeyRange range, const RowSpan& rows) const {
    return {range.begin, min_i32(range.end, rows.context_len)};
  }
};

}  // namespace quire::terms
