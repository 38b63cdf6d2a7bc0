// Random activations for benchmarks: the same on every platform and cheap to make.
#pragma once

#include <cstdint>
#include <random>

#include "core/convert.h"
#include "quire/tensor.h"

namespace quire::cli {

// Roughly normal with unit variance: the sum of four uniform numbers.
class RandomNormal {
 public:
  explicit RandomNormal(std::uint64_t seed) : random_(seed) {}

  float next() {
    const std::uint64_t bits = random_();
    int sum = 0;
    for (int i = 0; i < 4; ++i) sum += static_cast<int>((bits >> (16 * i)) & 0xffff);
    return static_cast<float>(sum - 2 * 65535) * (1.7320508f / 65535.0f);
  }

  // Fills a contiguous tensor.
  void fill(const TensorView& tensor) {
    for (std::int64_t i = 0; i < tensor.num_elements(); ++i) store_from_float(tensor.data, tensor.dtype, i, next());
  }

 private:
  std::mt19937_64 random_;
};

}  // namespace quire::cli
