// What builders and implementations read out of a layer's configuration, and its checks.
#pragma once

#include "backends/traits.h"
#include "quire/backend.h"

namespace quire::backends {

// Heads, sizes, terms and runtime of a layer that the backend is to run; the first thing that is wrong.
Status check_impl_config(const BackendTraits& traits, const ImplConfig& config);
Status check_builder_config(const BackendTraits& traits, const BuilderConfig& config);

// The terms of a layer that bound its keys, window and chunk: a builder clips its plan with them, an implementation
// masks with them. Only positions count for causal rows; others see as far ahead as behind.
Result<Variant> bounding_terms(const BuilderConfig& config);
Result<Variant> bounding_terms(const ImplConfig& config);
// Whether every key that `layer` lets a row see is one that `plan` let it see.
bool bounds_cover(const Variant& plan, const Variant& layer);

}  // namespace quire::backends
