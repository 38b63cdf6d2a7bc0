// The ordered list of terms, and how the terms of one sequence are read out of a Variant.
#pragma once

#include "quire/variant.h"
#include "variant/terms/alibi.h"
#include "variant/terms/causal.h"
#include "variant/terms/chunk.h"
#include "variant/terms/mm_prefix.h"
#include "variant/terms/sink.h"
#include "variant/terms/softcap.h"
#include "variant/terms/tree.h"
#include "variant/terms/window.h"

namespace quire {

// All terms of one sequence. Order matters for logit hooks: softcap, then ALiBi, then the tree's bias.
struct Terms {
  terms::Softcap softcap;
  terms::Alibi alibi;
  terms::Tree tree;
  terms::Causal causal;
  terms::Window window;
  terms::Chunk chunk;
  terms::MmPrefix mm_prefix;
  terms::Sink sink;

  // Calls f(term) for every term in order. A new term is added here and in terms_of.
  template <class Function>
  QUIRE_HD void for_each(Function&& f) const {
    f(softcap);
    f(alibi);
    f(tree);
    f(causal);
    f(window);
    f(chunk);
    f(mm_prefix);
    f(sink);
  }
};

QUIRE_HD inline Terms terms_of(const Variant& variant, std::int32_t seq) {
  Terms terms;
  terms.softcap.cap = variant.softcap;
  terms.alibi = {variant.alibi, variant.alibi_slopes};
  if (variant.tree.size != nullptr && variant.tree.size[seq] > 0) {
    terms.tree.size = variant.tree.size[seq];
    terms.tree.mask = variant.tree.mask + variant.tree.mask_offset[seq];
    if (variant.tree.bias != nullptr) terms.tree.bias = variant.tree.bias + variant.tree.bias_offset[seq];
  }
  terms.causal.on = variant.causal_per_seq != nullptr ? variant.causal_per_seq[seq] != 0 : variant.causal;
  terms.window = {variant.window_left, variant.window_right};
  terms.chunk = {variant.chunk, variant.chunk_lookback};
  if (variant.mm_prefix_ranges != nullptr) {
    terms.mm_prefix = {variant.mm_prefix_ranges + static_cast<std::int64_t>(seq) * variant.mm_prefix_max_ranges * 2,
                       variant.mm_prefix_max_ranges};
  }
  terms.sink.sinks = variant.sinks;
  return terms;
}

}  // namespace quire
