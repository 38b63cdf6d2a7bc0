// RopeTable: the cosines and sines of rotary position embedding, with every scaling that checkpoints ask for. Rows are
// made when a step first needs them, so that a context of a million tokens costs nothing before it is used.
#pragma once

#include <cstdint>
#include <vector>

#include "io/hf_config.h"
#include "quire/kv_cache.h"
#include "quire/status.h"
#include "quire/tensor.h"

namespace quire {

struct RopeTable {
  std::vector<float> inverse;  // frequencies [rotary_dim / 2]
  float factor = 1.0f;         // of cosines and sines
  std::vector<float> cos_sin;  // [made positions, rotary_dim]: cosines, then sines
  std::int32_t rotary_dim = 0;
  std::int64_t num_positions = 0;
  RopeStyle style = RopeStyle::kNeox;
  // What a scaling wants of the logits' scale (DeepSeek's yarn): the product of both corrections.
  double logit_factor = 1.0;

  // Makes the rows of positions [0, positions), as far as num_positions goes.
  void cover(std::int64_t positions);
  // The rows that were made.
  TensorView view() const;
};

struct RopeShape {
  std::int32_t head_size = 0;  // frequencies are theta^(-2i / rotary_dim), rotary_dim = head_size x partial factor
  std::int64_t num_positions = 0;
  RopeStyle style = RopeStyle::kNeox;
  double default_theta = 10000.0;
};

// Reads "rope_parameters", or "rope_theta" and "rope_scaling", of types default, linear, dynamic, yarn and llama3.
// A dynamic table is made for num_positions: shorter than max_position_embeddings it is the unscaled one. Errors name
// the key.
Result<RopeTable> make_rope_table(const HfConfig& config, const RopeShape& shape);

}  // namespace quire
