// The fold over the terms: a logit's value, whether the key exists, and which keys a tile of rows can see or must mask.
#pragma once

#include <utility>

#include "variant/terms.h"

namespace quire {

// The logit after every term; `s` comes in as scale * q.k.
template <class N>
QUIRE_HD typename N::F fold_logit(const Terms& terms, typename N::F s, const At<N>& at) {
  terms.for_each([&](const auto& term) {
    if constexpr (requires { term.template logit<N>(s, at); }) {
      if (term.active()) s = term.template logit<N>(s, at);
    }
  });
  return s;
}

// Whether the keys exist for the query: all `keep` hooks, or a `widen` hook. `inside` masks lanes beyond the keys at
// hand.
template <class N>
QUIRE_HD typename N::M fold_keep(const Terms& terms, typename N::M inside, const At<N>& at) {
  typename N::M kept = inside;
  terms.for_each([&](const auto& term) {
    if constexpr (requires { term.template keep<N>(at); }) {
      if (term.active()) kept = kept & term.template keep<N>(at);
    }
    if constexpr (requires { term.template widen<N>(kept, at); }) {
      if (term.active()) kept = term.template widen<N>(kept, at) & inside;
    }
  });
  return kept;
}

// The keys that any of the rows can see, out of `all` (a hull: single keys inside it may still be masked).
QUIRE_HD inline KeyRange fold_clip(const Terms& terms, KeyRange all, const RowSpan& rows) {
  KeyRange range = all;
  terms.for_each([&](const auto& term) {
    if constexpr (requires { term.clip(range, rows); }) {
      if (term.active()) range = term.clip(range, rows);
    }
    if constexpr (requires { term.widen_clip(range, all, rows); }) {
      if (term.active()) range = term.widen_clip(range, all, rows);
    }
  });
  return range;
}

// The keys that all rows see, out of `all`: no masking is needed there.
QUIRE_HD inline KeyRange fold_interior(const Terms& terms, KeyRange all, const RowSpan& rows) {
  KeyRange range = all;
  terms.for_each([&](const auto& term) {
    if constexpr (requires { term.interior(range, rows); }) {
      if (term.active()) range = term.interior(range, rows);
    }
  });
  return range;
}

// Whether any active term changes logits beyond the scale (masks and sinks do not).
QUIRE_HD inline bool has_logit_terms(const Terms& terms) {
  return terms.softcap.active() || terms.alibi.active() || (terms.tree.active() && terms.tree.bias != nullptr);
}

}  // namespace quire
