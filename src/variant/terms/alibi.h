// ALiBi: a penalty that grows with the distance of the key, with one slope a head.
#pragma once

#include "quire/variant.h"
#include "variant/at.h"

namespace quire::terms {

struct Alibi {
  AlibiKind kind = AlibiKind::kNone;
  const float* slopes = nullptr;

  QUIRE_HD bool active() const { return kind != AlibiKind::kNone; }

  template <class N>
  QUIRE_HD typename N::F logit(typename N::F s, const At<N>& at) const {
    const auto slope = N::constant(slopes[at.q_head]);
    if (kind == AlibiKind::kLinear) return s + slope * N::to_float(at.kv_pos - at.context_len);
    const auto ahead = N::to_float(at.kv_pos - at.q_pos);  // <= 0 for past keys
    const auto zero = N::constant(0.0);
    if (kind == AlibiKind::kSqrt) return s - slope * N::sqrt(N::select(at.kv_pos < at.q_pos, zero - ahead, zero));
    return s + slope * N::select(at.kv_pos < at.q_pos, ahead, zero - ahead);
  }
};

}  // namespace quire::terms
