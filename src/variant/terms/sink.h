// Sink: a logit a head that takes part in the softmax and has no value, so attention may go nowhere.
#pragma once

#include "variant/at.h"

namespace quire::terms {

struct Sink {
  const float* sinks = nullptr;

  QUIRE_HD bool active() const { return sinks != nullptr; }
  QUIRE_HD float sink(std::int32_t q_head) const { return sinks[q_head]; }
};

}  // namespace quire::terms
