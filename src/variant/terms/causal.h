// Causal: a query sees its own position and those before it.
#pragma once

#include "variant/at.h"

namespace quire::terms {

struct Causal {
  bool on = true;

  QUIRE_HD bool active() const { return on; }

  template <class N>
  QUIRE_HD typename N::M keep(const At<N>& at) const {
    return at.kv_pos <= at.q_pos;
  }
  QUIRE_HD KeyRange clip(KeyRange range, const RowSpan& rows) const {
    return {range.begin, min_i32(range.end, rows.last_q_pos() + 1)};
  }
  QUIRE_HD KeyRange interior(KeyRange range, const RowSpan& rows) const {
    return {range.begin, min_i32(range.end, rows.first_q_pos() + 1)};
  }
};

}  // namespace quire::terms
