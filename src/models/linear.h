// Linear: y = x W^T + b through oneDNN, with the weights reordered once into its blocked format.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "models/rows.h"
#include "quire/dtype.h"
#include "quire/status.h"
#include "quire/tensor.h"

namespace quire {

// How a linear layer cuts its rows into calls. oneDNN may choose another kernel for another number of rows, so that a
// row's last bits could depend on how many rows come with it; kFixed makes every call the same shape, padded.
enum class RowTiling : std::uint8_t { kByCount, kFixed };
inline constexpr std::int64_t kFixedRowTile = 8;

// Where a weight's two dimensions are in the checkpoint.
enum class WeightOrder : std::uint8_t { kOutIn, kInOut };

// The parts are stacked over the outputs: q, k and v make one layer of three parts.
struct LinearWeights {
  std::vector<TensorView> parts = {};          // [out_i, in] (or [in, out_i]) of an activation type, contiguous
  std::vector<float> bias = {};                // [sum of out_i], empty: none
  std::span<const std::int64_t> outputs = {};  // output i of the layer is stacked output outputs[i]; empty: as stacked
  WeightOrder order = WeightOrder::kOutIn;
};

class Linear {
 public:
  // `compute` is float32 or bfloat16: the type of the inputs and of the stored weights. Products are summed in float32.
  // bfloat16 where the processor has no AVX-512 is kUnsupported.
  static Result<Linear> create(const LinearWeights& weights, DType compute, RowTiling tiling);

  std::int64_t in_features() const;
  std::int64_t out_features() const;
  std::int64_t weight_bytes() const;
  // y[0 .. num_rows) from x, rows of in_features() in the compute type; y is float32 or the compute type. Rows behind
  // num_rows up to the next multiple of kRowPadding are read and written too. Not for two threads at once.
  Status run(const Rows& x, std::int64_t num_rows, const Rows& y) const;

  Linear(Linear&&) noexcept;
  Linear& operator=(Linear&&) noexcept;
  ~Linear();

 private:
  struct State;
  explicit Linear(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// Whether the processor can multiply bfloat16 matrices through oneDNN.
bool has_bfloat16_linear();

}  // namespace quire
