// Computes rotary tables. Frequencies and angles are rounded to float32 as transformers rounds them, because an angle
// of some thousand radians shows the difference.
#include "models/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <optional>
#include <string>

namespace quire {
namespace {

// A table larger than this is a mistake of the configuration: 512 MiB.
constexpr std::int64_t kMaxTableFloats = std::int64_t{1} << 27;

struct RopeConfig {
  std::optional<HfConfig> scaling;  // the object that holds type and factors
  std::string type = "default";
  double theta = 10000.0;
  double factor = 1.0;
  double partial = 1.0;
  std::int32_t max_position = 0;
};

struct Frequencies {
  std::vector<float> inverse = {};  // [rotary_dim / 2]
  double attention_factor = 1.0;
  double logit_factor = 1.0;
};

Result<RopeConfig> read_rope_config(const HfConfig& config, double default_theta) {
  RopeConfig out;
  QUIRE_ASSIGN_OR_RETURN(out.theta, config.number_or("rope_theta", default_theta));
  QUIRE_ASSIGN_OR_RETURN(out.partial, config.number_or("partial_rotary_factor", 1.0));
  QUIRE_ASSIGN_OR_RETURN(out.max_position, config.count_or("max_position_embeddings", 2048));
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    if (!config.has(key)) continue;
    QUIRE_ASSIGN_OR_RETURN(out.scaling, config.object(key));
    const HfConfig& scaling = *out.scaling;
    QUIRE_ASSIGN_OR_RETURN(const std::string old_type, scaling.text_or("type", "default"));
    QUIRE_ASSIGN_OR_RETURN(out.type, scaling.text_or("rope_type", old_type));
    QUIRE_ASSIGN_OR_RETURN(out.theta, scaling.number_or("rope_theta", out.theta));
    QUIRE_ASSIGN_OR_RETURN(out.partial, scaling.number_or("partial_rotary_factor", out.partial));
    if (out.type != "default") {
      QUIRE_ASSIGN_OR_RETURN(out.factor, scaling.number("factor"));
    }
    if (!(out.factor >= 1e-3)) return data_loss(config.path() + ": key '" + key + ".factor': want a positive number");
    break;
  }
  if (!(out.theta > 1.0) || !(out.partial > 0.0) || out.partial > 1.0) {
    return data_loss(config.path() + ": keys 'rope_theta' and 'partial_rotary_factor': want more than 1 and (0, 1]");
  }
  return out;
}

std::vector<float> plain_frequencies(double theta, std::int32_t dim) {
  std::vector<float> out(static_cast<std::size_t>(dim / 2));
  for (std::size_t i = 0; i < out.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(dim);
    out[i] = 1.0f / static_cast<float>(std::pow(theta, static_cast<double>(exponent)));
  }
  return out;
}

Result<Frequencies> llama3(const RopeConfig& rope, std::int32_t dim) {
  QUIRE_ASSIGN_OR_RETURN(const double low, rope.scaling->number("low_freq_factor"));
  QUIRE_ASSIGN_OR_RETURN(const double high, rope.scaling->number("high_freq_factor"));
  QUIRE_ASSIGN_OR_RETURN(const std::int32_t original,
                         rope.scaling->count_or("original_max_position_embeddings", rope.max_position));
  Frequencies out{.inverse = plain_frequencies(rope.theta, dim)};
  for (float& inverse : out.inverse) {
    const double wavelength = 2.0 * std::numbers::pi / static_cast<double>(inverse);
    if (wavelength < original / high) continue;
    if (wavelength > original / low) {
      inverse = static_cast<float>(inverse / rope.factor);
      continue;
    }
    const double smooth = (original / wavelength - low) / (high - low);
    inverse = static_cast<float>((1.0 - smooth) * inverse / rope.factor + smooth * inverse);
  }
  return out;
}

double yarn_mscale(double factor, double mscale) { return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0; }

// The dimension that turns `rotations` times over the original positions.
double yarn_dimension(double rotations, std::int32_t dim, double theta, double positions) {
  return dim * std::log(positions / (rotations * 2.0 * std::numbers::pi)) / (2.0 * std::log(theta));
}

Result<Frequencies> yarn(const RopeConfig& rope, std::int32_t dim) {
  const HfConfig& scaling = *rope.scaling;
  QUIRE_ASSIGN_OR_RETURN(const std::int32_t original,
                         scaling.count_or("original_max_position_embeddings", rope.max_position));
  QUIRE_ASSIGN_OR_RETURN(const double mscale, scaling.number_or("mscale", 0.0));
  QUIRE_ASSIGN_OR_RETURN(const double mscale_all, scaling.number_or("mscale_all_dim", 0.0));
  const double fallback = mscale != 0.0 && mscale_all != 0.0
                              ? yarn_mscale(rope.factor, mscale) / yarn_mscale(rope.factor, mscale_all)
                              : yarn_mscale(rope.factor, 1.0);
  Frequencies out{.inverse = plain_frequencies(rope.theta, dim)};
  QUIRE_ASSIGN_OR_RETURN(out.attention_factor, scaling.number_or("attention_factor", fallback));
  if (mscale_all != 0.0) out.logit_factor = std::pow(yarn_mscale(rope.factor, mscale_all), 2.0);
  QUIRE_ASSIGN_OR_RETURN(const double fast, scaling.number_or("beta_fast", 32.0));
  QUIRE_ASSIGN_OR_RETURN(const double slow, scaling.number_or("beta_slow", 1.0));
  QUIRE_ASSIGN_OR_RETURN(const bool truncate, scaling.flag_or("truncate", true));
  double low = yarn_dimension(fast, dim, rope.theta, original);
  double high = yarn_dimension(slow, dim, rope.theta, original);
  if (truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(dim - 1));
  if (low == high) high += 0.001;
  for (std::size_t i = 0; i < out.inverse.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    const double inverse = out.inverse[i];
    out.inverse[i] = static_cast<float>(inverse / rope.factor * ramp + inverse * (1.0 - ramp));
  }
  return out;
}

Result<Frequencies> frequencies(const HfConfig& config, const RopeConfig& rope, std::int32_t dim,
                                std::int64_t num_positions) {
  if (rope.type == "default") return Frequencies{.inverse = plain_frequencies(rope.theta, dim)};
  if (rope.type == "llama3") return llama3(rope, dim);
  if (rope.type == "yarn") return yarn(rope, dim);
  if (rope.type == "linear") {
    Frequencies out{.inverse = plain_frequencies(rope.theta, dim)};
    for (float& inverse : out.inverse) inverse = static_cast<float>(inverse / rope.factor);
    return out;
  }
  if (rope.type == "dynamic") {
    QUIRE_ASSIGN_OR_RETURN(const std::int32_t original,
                           rope.scaling->count_or("original_max_position_embeddings", rope.max_position));
    const double length = std::max<double>(static_cast<double>(num_positions), original);
    const double stretch = rope.factor * length / original - (rope.factor - 1.0);
    const double theta = dim > 2 ? rope.theta * std::pow(stretch, static_cast<double>(dim) / (dim - 2)) : rope.theta;
    return Frequencies{.inverse = plain_frequencies(theta, dim)};
  }
  return unsupported(config.path() + ": key 'rope_type': want default, linear, dynamic, yarn or llama3, got " +
                     rope.type);
}

}  // namespace

TensorView RopeTable::view() const {
  TensorView out;
  out.data = const_cast<float*>(cos_sin.data());
  out.dtype = DType::kFloat32;
  out.rank = 2;
  out.shape = {static_cast<std::int64_t>(cos_sin.size()) / rotary_dim, rotary_dim};
  out.strides = {rotary_dim, 1};
  return out;
}

void RopeTable::cover(std::int64_t positions) {
  const auto dim = static_cast<std::size_t>(rotary_dim);
  const std::int64_t made = view().size(0);
  if (std::min(positions, num_positions) <= made) return;
  const std::int64_t wanted = std::min(std::max({positions, 2 * made, std::int64_t{256}}), num_positions);
  cos_sin.resize(static_cast<std::size_t>(wanted) * dim);
  for (std::int64_t position = made; position < wanted; ++position) {
    float* row = cos_sin.data() + static_cast<std::size_t>(position) * dim;
    for (std::size_t i = 0; i < dim / 2; ++i) {
      const float angle = static_cast<float>(position) * inverse[i];
      row[i] = std::cos(angle) * factor;
      row[dim / 2 + i] = std::sin(angle) * factor;
    }
  }
}

Result<RopeTable> make_rope_table(const HfConfig& config, const RopeShape& shape) {
  QUIRE_ASSIGN_OR_RETURN(const RopeConfig rope, read_rope_config(config, shape.default_theta));
  RopeTable table;
  table.style = shape.style;
  table.num_positions = shape.num_positions;
  table.rotary_dim = static_cast<std::int32_t>(shape.head_size * rope.partial);
  if (table.rotary_dim < 2 || table.rotary_dim % 2 != 0) {
    return unsupported(config.path() + ": want an even rotary dimension, got " + std::to_string(table.rotary_dim));
  }
  if (shape.num_positions < 1 || shape.num_positions > kMaxTableFloats / table.rotary_dim) {
    return resource_exhausted(config.path() + ": want at most " + std::to_string(kMaxTableFloats / table.rotary_dim) +
                              " positions of a rotary table, got " + std::to_string(shape.num_positions) +
                              " (max_model_len makes it shorter)");
  }
  QUIRE_ASSIGN_OR_RETURN(Frequencies found, frequencies(config, rope, table.rotary_dim, shape.num_positions));
  if (rope.scaling) QUIRE_RETURN_IF_ERROR(rope.scaling->check_all_read());
  table.logit_factor = found.logit_factor;
  table.inverse = std::move(found.inverse);
  table.factor = static_cast<float>(found.attention_factor);
  return table;
}

}  // namespace quire
