// Arithmetic on sizes that come from outside: an overflow is an empty result, never a wrapped number.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>

namespace quire {

inline std::optional<std::int64_t> checked_mul(std::int64_t a, std::int64_t b) {
  std::int64_t out = 0;
  if (__builtin_mul_overflow(a, b, &out)) return std::nullopt;
  return out;
}

inline std::optional<std::int64_t> checked_add(std::int64_t a, std::int64_t b) {
  std::int64_t out = 0;
  if (__builtin_add_overflow(a, b, &out)) return std::nullopt;
  return out;
}

// The product of all factors, each of which must be >= 0. A zero factor gives zero whatever the others are.
inline std::optional<std::int64_t> checked_product(std::initializer_list<std::int64_t> factors) {
  for (std::int64_t factor : factors) {
    if (factor < 0) return std::nullopt;
  }
  for (std::int64_t factor : factors) {
    if (factor == 0) return 0;
  }
  std::int64_t out = 1;
  for (std::int64_t factor : factors) {
    if (__builtin_mul_overflow(out, factor, &out)) return std::nullopt;
  }
  return out;
}

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
constexpr std::int64_t round_up(std::int64_t a, std::int64_t multiple) { return ceil_div(a, multiple) * multiple; }

}  // namespace quire
