// Window: a query sees keys at most `left` positions behind it and `right` ahead; -1 leaves a side open.
#pragma once

#include "variant/at.h"

namespace quire::terms {

struct Window {
  std::int32_t left = -1;
  std::int32_t right = -1;

  QUIRE_HD bool active() const { return left >= 0 || right >= 0; }

  template <class N>
  QUIRE_HD typename N::M keep(const At<N>& at) const {
    if (right < 0) return at.kv_pos >= first_key(at.q_pos);
    if (left < 0) return at.kv_pos <= last_key(at.q_pos);
    const typename N::M after_first = at.kv_pos >= first_key(at.q_pos);
    const typename N::M before_last = at.kv_pos <= last_key(at.q_pos);
    return after_first & before_last;
  }
  QUIRE_HD KeyRange clip(KeyRange range, const RowSpan& rows) const {
    return bounded(range, rows.first_q_pos(), rows.last_q_pos());
  }
  QUIRE_HD KeyRange interior(KeyRange range, const RowSpan& rows) const {
    return bounded(range, rows.last_q_pos(), rows.first_q_pos());
  }

 private:
  // 64-bit sums, because a window may be as wide as int32 allows. Positions of keys start at 0.
  QUIRE_HD std::int32_t first_key(std::int32_t q_pos) const {
    const std::int64_t first = static_cast<std::int64_t>(q_pos) - left;
    return first > 0 ? static_cast<std::int32_t>(first) : 0;
  }
  QUIRE_HD std::int32_t last_key(std::int32_t q_pos) const {
    const std::int64_t last = static_cast<std::int64_t>(q_pos) + right;
    return last < 0x7fffffff ? static_cast<std::int32_t>(last) : 0x7fffffff;
  }
  QUIRE_HD KeyRange bounded(KeyRange range, std::int32_t left_anchor, std::int32_t right_anchor) const {
    if (left >= 0) {
      const std::int64_t begin = static_cast<std::int64_t>(left_anchor) - left;
      if (begin > range.begin) range.begin = static_cast<std::int32_t>(begin);
    }
    if (right >= 0) {
      const std::int64_t end = static_cast<std::int64_t>(right_anchor) + right + 1;
      if (end < range.end) range.end = static_cast<std::int32_t>(end);
    }
    return range;
  }
};

}  // namespace quire::terms
