// MmPrefix: inside each given range of positions (an image's tokens) queries see all keys, before and behind them.
#pragma once

#include "variant/at.h"

namespace quire::terms {

struct MmPrefix {
  const std::int32_t* ranges = nullptr;  // [count, 2] inclusive; start >= end is padding
  std::int32_t count = 0;

  QUIRE_HD bool active() const { return count > 0; }

  // Keys that exist although another term hides them.
  template <class N>
  QUIRE_HD typename N::M widen(typename N::M kept, const At<N>& at) const {
    for (std::int32_t i = 0; i < count; ++i) {
      const std::int32_t start = ranges[2 * i];
      const std::int32_t end = ranges[2 * i + 1];
      if (start >= end || at.q_pos < start || at.q_pos > end) continue;
      kept = kept | ((at.kv_pos >= start) & (at.kv_pos <= end));
    }
    return kept;
  }
  // `clipped` is what the other terms leave of `all`.
  QUIRE_HD KeyRange widen_clip(KeyRange clipped, KeyRange all, const RowSpan& rows) const {
    for (std::int32_t i = 0; i < count; ++i) {
      const std::int32_t start = max_i32(ranges[2 * i], all.begin);
      const std::int32_t end = min_i32(ranges[2 * i + 1] + 1, all.end);
      const bool is_padding = ranges[2 * i] >= ranges[2 * i + 1];
      if (is_padding || start >= end || rows.last_q_pos() < ranges[2 * i] || rows.first_q_pos() > ranges[2 * i + 1])
        continue;
      if (clipped.is_empty()) {
        clipped = {start, end};
      } else {
        clipped = {min_i32(clipped.begin, start), max_i32(clipped.end, end)};
      }
    }
    return clipped;
  }
};

}  // namespace quire::terms
