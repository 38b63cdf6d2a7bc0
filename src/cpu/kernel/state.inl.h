// What happens to a row's softmax state after its tiles: merging of splits, sink, differential combine, output.
//
// Cost: a few passes over rows * columns floats, once a split or once a row; nothing beside the tiles.
#pragma once

#include "core/convert.h"
#include "cpu/kernel_table.h"
#include "variant/terms.h"

namespace quire::cpu {
namespace {

QUIRE_INLINE float first_lane(Simd::F x) {
  float lanes[Simd::kLanes];
  Simd::store(lanes, x);
  return lanes[0];
}
QUIRE_INLINE float exp2_of(float x) { return first_lane(Number::exp2(Simd::broadcast(&x))); }
QUIRE_INLINE float log_of(float x) { return first_lane(Number::log(Simd::broadcast(&x))); }

inline void clear_state(const RowState& state, std::int32_t rows, std::int32_t columns) {
  const std::int32_t padded = (rows + kColumnPad - 1) / kColumnPad * kColumnPad;
  for (std::int32_t row = 0; row < padded; row += Simd::kLanes) {
    Simd::store(state.largest + row, Simd::constant(kHidden));
    Simd::store(state.sum + row, Simd::constant(0.0));
  }
  const std::int64_t values = static_cast<std::int64_t>(rows) * columns;
  for (std::int64_t i = 0; i < values; i += Simd::kLanes) Simd::store(state.values + i, Simd::constant(0.0));
}

inline void copy_row_state(const RowState& from, std::int64_t source, const RowState& to, std::int64_t target,
                           std::int32_t columns) {
  to.largest[target] = from.largest[source];
  to.sum[target] = from.sum[source];
  for (std::int32_t i = 0; i < columns; i += Simd::kLanes) {
    Simd::store(to.values + target * columns + i, Simd::load(from.values + source * columns + i));
  }
}

// Row `target` of `total` takes in row `source` of a later split. Empty states change nothing, to the bit.
inline void merge_row_state(const RowState& from, std::int64_t source, const RowState& total, std::int64_t target,
                            std::int32_t columns) {
  const float later = from.largest[source];
  const float before = total.largest[target];
  if (later == kHidden) return;
  if (before == kHidden) {
    copy_row_state(from, source, total, target, columns);
    return;
  }
  const float now = before > later ? before : later;
  const float keep = exp2_of(before - now);
  const float add = exp2_of(later - now);
  total.largest[target] = now;
  total.sum[target] = total.sum[target] * keep + from.sum[source] * add;
  for (std::int32_t i = 0; i < columns; i += Simd::kLanes) {
    float* to = total.values + target * columns + i;
    const Simd::F kept = Simd::load(to) * Simd::broadcast(&keep);
    Simd::store(to, Simd::fma(Simd::load(from.values + source * columns + i), Simd::broadcast(&add), kept));
  }
}

// The row's values divided by its sum, zeros for a row without keys; the sink takes part in the sum. Writes lse.
inline void normalize_row(const Call& call, std::int64_t token, std::int32_t q_head, const RowState& state,
                          std::int64_t row, float* out) {
  const AttentionArgs& args = *call.args;
  float largest = state.largest[row];
  float sum = state.sum[row];
  float weight = 1.0f;
  if (args.variant.sinks != nullptr) {
    const float sink = args.variant.sinks[q_head] * static_cast<float>(Number::kLog2E);
    const float now = sink > largest ? sink : largest;
    weight = largest == kHidden ? 0.0f : exp2_of(largest - now);
    sum = sink == kHidden ? sum * weight : sum * weight + exp2_of(sink - now);
    largest = now;
  }
  const bool is_empty = largest == kHidden;
  if (args.lse != nullptr) {
    args.lse[q_head * args.lse_head_stride + token] =
        is_empty ? kHidden : largest * static_cast<float>(Number::kLn2) + log_of(sum);
  }
  const float factor = is_empty ? 0.0f : weight / sum;
  for (std::int32_t stream = 0; stream < args.kv.num_streams; ++stream) {
    const float scaled = factor * args.kv.value[stream].tensor_scale;
    for (std::int32_t i = 0; i < call.value_pad; i += Simd::kLanes) {
      const std::int32_t at = stream * call.value_pad + i;
      // Adding zero makes every zero positive: a zero's sign may depend on keys that weigh nothing.
      const Simd::F value = Simd::load(state.values + row * call.columns + at) * Simd::broadcast(&scaled);
      Simd::store(out + at, value + Simd::constant(0.0));
    }
  }
}

// first -= lambda * second, then the root mean square norm over the 2 * head_size_v columns that are no padding.
inline void combine_rows(const Call& call, float* first, const float* second) {
  const DifferentialCombine& tail = call.args->differential;
  const std::int32_t size = call.args->kv.head_size_v;
  Simd::F squares = Simd::constant(0.0);
  for (std::int32_t i = 0; i < call.columns; i += Simd::kLanes) {
    const Simd::F minus_lambda = Simd::constant(-static_cast<double>(tail.lambda));
    const Simd::F value = Simd::fma(Simd::load(second + i), minus_lambda, Simd::load(first + i));
    squares = Simd::fma(value, value, squares);
    Simd::store(first + i, value);
  }
  if (tail.subln_weight == nullptr) return;
  const float mean = Simd::reduce_add(squares) / static_cast<float>(2 * size);
  const float norm = tail.post_scale / __builtin_sqrtf(mean + tail.eps);
  for (std::int32_t i = 0; i < size; ++i) {
    first[i] = first[i] * norm * tail.subln_weight[i];
    first[call.value_pad + i] = first[call.value_pad + i] * norm * tail.subln_weight[size + i];
  }
}

// Rounds one head's row to the output's dtype.
inline void store_head(const Call& call, std::int64_t token, std::int64_t head, const float* row) {
  const AttentionArgs& args = *call.args;
  const std::int32_t size = args.kv.head_size_v;
  if (call.block_rows != nullptr) {
    float* to = call.block_rows + (token * args.num_q_heads + head) * size;
    for (std::int32_t i = 0; i < size; ++i) to[i] = row[i];
    return;
  }
  const std::int64_t at = token * args.output_token_stride + head * args.output_head_stride;
  if (args.output_dtype == DType::kFloat32) {
    float* to = static_cast<float*>(args.output) + at;
    for (std::int32_t i = 0; i < size; ++i) to[i] = row[i];
  } else if (args.output_dtype == DType::kBFloat16) {
    std::uint16_t* to = static_cast<std::uint16_t*>(args.output) + at;
    for (std::int32_t i = 0; i < size; ++i) to[i] = float_to_bf16(row[i]);
  } else if (args.output_dtype == DType::kFloat16) {
    std::uint16_t* to = static_cast<std::uint16_t*>(args.output) + at;
    for (std::int32_t i = 0; i < size; ++i) to[i] = float_to_f16(row[i]);
  } else {
    const float factor = args.output_scale > 0.0f ? 1.0f / args.output_scale : 1.0f;
    std::uint8_t* to = static_cast<std::uint8_t*>(args.output) + at;
    for (std::int32_t i = 0; i < size; ++i) to[i] = float_to_e4m3(row[i] * factor);
  }
}

// Normalises, combines and stores every row of the chunk.
inline void write_outputs(const Call& call, const Chunk& chunk, const Scratch& scratch, const RowState& state) {
  const AttentionArgs& args = *call.args;
  const std::int32_t streams = args.kv.num_streams;
  for (std::int32_t row = 0; row < chunk.num_rows; ++row) {
    const std::int32_t place = chunk.first_row + row;
    const std::int64_t token = args.query_start_loc[chunk.seq] + place / call.group_size;
    const std::int32_t head = (chunk.kv_head * call.group_size + place % call.group_size) * streams;
    for (std::int32_t stream = 0; stream < streams; ++stream) {
      normalize_row(call, token, head + stream, state, static_cast<std::int64_t>(stream) * chunk.num_rows + row,
                    scratch.row + stream * call.columns);
    }
    if (streams == 2) combine_rows(call, scratch.row, scratch.row + call.columns);
    for (std::int32_t stream = 0; stream < streams; ++stream) {
      store_head(call, token, head + stream, scratch.row + stream * call.value_pad);
    }
  }
}

// Folds the partials of a chunk's rows in ascending order, `step` rows apart, and writes the outputs.
inline void merge_chunk(const Call& call, const Chunk& chunk, const Scratch& scratch, const Partial& first,
                        std::int64_t step, std::int32_t count) {
  for (std::int32_t stream = 0; stream < call.args->kv.num_streams; ++stream) {
    for (std::int32_t row = 0; row < chunk.num_rows; ++row) {
      const std::int64_t source = first.first + stream * first.stream_rows + row;
      const std::int64_t target = static_cast<std::int64_t>(stream) * chunk.num_rows + row;
      copy_row_state(first.state, source, scratch.total, target, call.columns);
      for (std::int32_t i = 1; i < count; ++i) {
        merge_row_state(first.state, source + i * step, scratch.total, target, call.columns);
      }
    }
  }
  write_outputs(call, chunk, scratch, scratch.total);
}

// One token's row of float32 outputs becomes e4m3 in groups of 128, each with the scale absmax / 448.
inline void quantize_token(const Call& call, std::int64_t token) {
  constexpr std::int32_t kGroup = 128;
  const AttentionArgs& args = *call.args;
  const std::int32_t size = args.kv.head_size_v;
  const std::int32_t width = args.num_q_heads * size;
  const float* row = call.block_rows + token * width;
  std::uint8_t* out = static_cast<std::uint8_t*>(args.output) + token * args.output_token_stride;
  for (std::int32_t begin = 0; begin < width; begin += kGroup) {
    const std::int32_t end = begin + kGroup < width ? begin + kGroup : width;
    float largest = 0.0f;
    for (std::int32_t i = begin; i < end; ++i) {
      const float magnitude = __builtin_fabsf(row[i]);
      largest = magnitude > largest ? magnitude : largest;
    }
    const float scale = largest / 448.0f;
    args.output_block_scale[token * args.output_block_scale_stride + begin / kGroup] = scale;
    for (std::int32_t i = begin; i < end; ++i) {
      const float value = scale > 0.0f ? row[i] / scale : 0.0f;
      out[i / size * args.output_head_stride + i % size] = float_to_e4m3(value);
    }
  }
}

}  // namespace
}  // namespace quire::cpu
