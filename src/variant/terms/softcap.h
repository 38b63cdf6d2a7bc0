// Softcap: s becomes cap * tanh(s / cap), so that no logit leaves (-cap, cap).
#pragma once

#include "variant/at.h"

namespace quire::terms {

struct Softcap {
  float cap = 0.0f;

  QUIRE_HD bool active() const { return cap > 0.0f; }

  template <class N>
  QUIRE_HD typename N::F logit(typename N::F s, const At<N>&) const {
    const auto c = N::constant(cap);
    return c * N::tanh(s / c);
  }
};

}  // namespace quire::terms
