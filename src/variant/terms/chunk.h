// Chunk: positions are cut into chunks; a query sees keys of its own chunk and of `lookback` chunks before it.
#pragma once

#include "variant/at.h"

namespace quire::terms {

struct Chunk {
  std::int32_t size = 0;
  std::int32_t lookback = 0;

  QUIRE_HD bool active() const { return size > 0; }

  template <class N>
  QUIRE_HD typename N::M keep(const At<N>& at) const {
    return at.kv_pos >= first_key(at.q_pos);
  }
  QUIRE_HD KeyRange clip(KeyRange range, const RowSpan& rows) const {
    return {max_i32(range.begin, first_key(rows.first_q_pos())), range.end};
  }
  QUIRE_HD KeyRange interior(KeyRange range, const RowSpan& rows) const {
    return {max_i32(range.begin, first_key(rows.last_q_pos())), range.end};
  }

 private:
  QUIRE_HD std::int32_t first_key(std::int32_t q_pos) const {
    const std::int64_t first = (static_cast<std::int64_t>(floor_div(q_pos, size)) - lookback) * size;
    return first > 0 ? static_cast<std::int32_t>(first) : 0;
  }
};

}  // namespace quire::terms
