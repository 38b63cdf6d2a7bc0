// AttentionCase: builds the buffers of a described attention call.
#include "support/attention_case.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "core/checked.h"
#include "core/convert.h"
#include "kv/addressing.h"
#include "quire/ops.h"

namespace quire::testing {
namespace {

// What an indexed_normal is for.
enum Stream : std::int64_t { kQuery, kKey, kValue, kSlope, kSink, kBias, kNorm };

std::size_t bytes_of(DType dtype, std::int64_t elements) {
  return static_cast<std::size_t>(dtype_bytes(dtype) * elements);
}

template <class T>
T* pointer_or_null(std::vector<T>& values) {
  return values.empty() ? nullptr : values.data();
}

void expect_ok(const Status& status, const char* what) {
  if (!status.ok()) throw std::runtime_error(std::string(what) + ": " + status.to_string());
}

template <class T>
T expect_value(Result<T> result, const char* what) {
  expect_ok(result.status(), what);
  return std::move(result).value();
}

}  // namespace

AttentionCase::AttentionCase(const CaseShape& shape) : shape_(shape) {
  make_batch();
  make_queries();
  make_cache();
  make_terms();
  make_outputs();
}

void AttentionCase::make_batch() {
  query_start_loc_.push_back(0);
  for (const RequestShape& request : shape_.requests) {
    query_start_loc_.push_back(query_start_loc_.back() + request.query_len);
    seq_lens_.push_back(request.seq_len);
  }
  args_.num_seqs = static_cast<std::int32_t>(shape_.requests.size());
  args_.num_tokens = query_start_loc_.back();
  args_.num_q_heads = shape_.num_q_heads();
  args_.query_start_loc = query_start_loc_.data();
  args_.seq_lens = seq_lens_.data();
}

void AttentionCase::make_queries() {
  const std::int32_t gap = shape_.seed % 3 == 0 ? 8 : 0;  // strided rows
  args_.query_dtype = shape_.dtype;
  args_.query_head_stride = shape_.head_size;
  args_.query_token_stride = static_cast<std::int64_t>(shape_.num_q_heads()) * shape_.head_size + gap;
  args_.query_scale = shape_.query_scale;
  const std::int64_t tokens = args_.num_tokens + shape_.padding_tokens;
  query_ = GuardedBuffer(bytes_of(shape_.dtype, tokens * args_.query_token_stride), 0xff);
  args_.query = query_.data();
  for (std::size_t seq = 0; seq < shape_.requests.size(); ++seq) {
    const RequestShape& request = shape_.requests[seq];
    for (std::int32_t row = 0; row < request.query_len; ++row) {
      const std::int64_t q_pos = request.seq_len - request.query_len + row;
      const std::int64_t token = query_start_loc_[seq] + row;
      for (std::int32_t head = 0; head < shape_.num_q_heads(); ++head) {
        for (std::int32_t d = 0; d < shape_.head_size; ++d) {
          const float value = indexed_normal(shape_.seed, {kQuery, request.content, q_pos, head, d});
          store_from_float(query_.data(), shape_.dtype,
                           token * args_.query_token_stride + head * args_.query_head_stride + d,
                           value / shape_.query_scale);
        }
      }
    }
  }
}

void AttentionCase::make_cache() {
  if (shape_.contiguous) {
    make_contiguous_cache();
  } else {
    make_paged_cache();
  }
  for (std::int32_t seq = 0; seq < args_.num_seqs; ++seq) fill_rows(args_.kv, seq);
}

void AttentionCase::make_contiguous_cache() {
  std::int64_t total = 0;
  for (std::int32_t seq_len : seq_lens_) {
    kv_start_.push_back(static_cast<std::int32_t>(total));
    total += seq_len;
  }
  const std::int64_t key_row = static_cast<std::int64_t>(shape_.num_kv_heads) * shape_.head_size;
  const std::int64_t value_row = static_cast<std::int64_t>(shape_.num_kv_heads) * shape_.head_size_v;
  cache_ = GuardedBuffer(bytes_of(shape_.dtype, total * (key_row + value_row)), 0xff);
  KVSource& kv = args_.kv;
  kv.dtype = shape_.dtype;
  kv.num_kv_heads = shape_.num_kv_heads;
  kv.head_size = shape_.head_size;
  kv.head_size_v = shape_.head_size_v;
  kv.key[0] = {.data = cache_.data(), .token_stride = key_row, .head_stride = shape_.head_size};
  kv.value[0] = {.data = cache_.data<unsigned char>() + bytes_of(shape_.dtype, total * key_row),
                 .token_stride = value_row,
                 .head_stride = shape_.head_size_v};
  kv.kv_start = kv_start_.data();
}

void AttentionCase::make_paged_cache() {
  std::int64_t width = 1;
  std::int64_t used = 0;
  for (std::int32_t seq_len : seq_lens_) {
    width = std::max(width, ceil_div(seq_len, shape_.block_size));
    used += ceil_div(seq_len, shape_.block_size);
  }
  const KVCacheSpec spec{.format = shape_.format,
                         .layout = shape_.layout,
                         .cache_dtype = shape_.cache_dtype,
                         .model_dtype = is_activation(shape_.dtype) ? shape_.dtype : DType::kBFloat16,
                         .scales = shape_.scales,
                         .num_blocks = used + 3,
                         .block_size = shape_.block_size,
                         .num_kv_heads = shape_.num_kv_heads,
                         .head_size = shape_.head_size,
                         .head_size_v = shape_.head_size_v};
  const std::int64_t layer_bytes = expect_value(kv_cache_bytes(spec), "kv_cache_bytes");
  cache_ = GuardedBuffer(static_cast<std::size_t>(layer_bytes * shape_.num_layers), 0xff);
  const LayeredCache layered{
      .data = cache_.data(), .num_layers = shape_.num_layers, .layer = shape_.num_layers - 1, .device = {}};
  const TensorView view = expect_value(
      shape_.num_layers == 1 ? view_kv_cache(spec, cache_.data()) : view_layered_kv_cache(spec, layered), "view");
  KVScales scales;
  scales.k_scale = shape_.k_scale;
  scales.v_scale = shape_.v_scale;
  if (is_per_token_head(shape_.cache_dtype) && shape_.scales == ScalePlacement::kSeparate) {
    const std::int64_t streams = shape_.is_differential() ? 2 : 1;
    const std::int64_t heads = shape_.num_kv_heads / streams;
    const std::size_t bytes = bytes_of(DType::kFloat32, streams * spec.num_blocks * spec.block_size * heads);
    k_scales_ = GuardedBuffer(bytes, 0xff);
    v_scales_ = GuardedBuffer(bytes, 0xff);
    const auto make = [&](const GuardedBuffer& buffer) {
      return streams == 1 ? make_tensor(buffer.data(), DType::kFloat32, {spec.num_blocks, spec.block_size, heads})
                          : make_tensor(buffer.data(), DType::kFloat32, {2, spec.num_blocks, spec.block_size, heads});
    };
    scales.k_scale_cache = expect_value(make(k_scales_), "k_scale_cache");
    scales.v_scale_cache = expect_value(make(v_scales_), "v_scale_cache");
  }
  args_.kv = expect_value(bind_kv_cache(spec, view, scales), "bind_kv_cache");
  // Blocks in random order; block 0 stays unused, as a null block.
  std::vector<std::int32_t> ids;
  for (std::int64_t id = 1; id < spec.num_blocks; ++id) ids.push_back(static_cast<std::int32_t>(id));
  Random random(shape_.seed ^ 0xb10c);
  random.shuffle(ids);
  block_table_.assign(static_cast<std::size_t>(width * args_.num_seqs), 0);
  std::size_t next = 0;
  for (std::int32_t seq = 0; seq < args_.num_seqs; ++seq) {
    for (std::int64_t i = 0; i < ceil_div(seq_lens_[static_cast<std::size_t>(seq)], shape_.block_size); ++i) {
      block_table_[static_cast<std::size_t>(seq * width + i)] = ids[next++];
    }
  }
  args_.kv.block_table = block_table_.data();
  args_.kv.block_table_stride = width;
}

void AttentionCase::fill_rows(KVSource& kv, std::int32_t seq) {
  const std::int64_t content = shape_.requests[static_cast<std::size_t>(seq)].content;
  std::vector<float> row;
  for (std::int32_t pos = 0; pos < seq_lens_[static_cast<std::size_t>(seq)]; ++pos) {
    const KVPlace place = kv_place(kv, seq, pos);
    for (std::int32_t stream = 0; stream < kv.num_streams; ++stream) {
      for (std::int32_t kv_head = 0; kv_head < kv.num_kv_heads; ++kv_head) {
        const std::int64_t head = static_cast<std::int64_t>(kv_head) * kv.num_streams + stream;
        row.resize(static_cast<std::size_t>(kv.head_size));
        for (std::size_t d = 0; d < row.size(); ++d) {
          row[d] = indexed_normal(shape_.seed, {kKey, content, pos, head, static_cast<std::int64_t>(d)});
        }
        store_vector(kv.key[stream], place.page, place.token, kv_head, row);
        row.resize(static_cast<std::size_t>(kv.head_size_v));
        for (std::size_t d = 0; d < row.size(); ++d) {
          row[d] = indexed_normal(shape_.seed, {kValue, content, pos, head, static_cast<std::int64_t>(d)});
          largest_value_ = std::max(largest_value_, 1.1 * std::abs(static_cast<double>(row[d])));
        }
        store_vector(kv.value[stream], place.page, place.token, kv_head, row);
      }
    }
  }
  // |q.k| of two normal vectors stays well below head_size + 6 * sqrt(head_size).
  largest_logit_ = std::abs(shape_.scale) * (shape_.head_size + 6.0 * std::sqrt(shape_.head_size));
}

void AttentionCase::store_vector(const KVRows& rows, std::int64_t place_page, std::int64_t place_token,
                                 std::int32_t kv_head, const std::vector<float>& values) {
  const KVPlace place{place_page, place_token};
  float scale = rows.tensor_scale;
  if (rows.scales != nullptr) {
    float largest = 0.0f;
    for (float value : values) largest = std::max(largest, std::abs(value));
    scale = std::max(largest / (args_.kv.dtype == DType::kInt8 ? 127.0f : 448.0f), 1e-6f);
    rows.scales[place.page * rows.scale_page_stride + place.token * rows.scale_token_stride +
                kv_head * rows.scale_head_stride] = scale;
  }
  const std::int64_t offset = row_offset(rows, place, kv_head);
  for (std::size_t d = 0; d < values.size(); ++d) {
    store_from_float(rows.data, args_.kv.dtype, offset + static_cast<std::int64_t>(d), values[d] / scale);
  }
}

void AttentionCase::make_terms() {
  Variant& variant = args_.variant;
  variant.scale = shape_.scale;
  variant.softcap = shape_.softcap;
  variant.causal = shape_.causal;
  variant.causal_per_seq = pointer_or_null(shape_.causal_per_seq);
  variant.window_left = shape_.window_left;
  variant.window_right = shape_.window_right;
  variant.chunk = shape_.chunk;
  variant.chunk_lookback = shape_.chunk_lookback;
  variant.alibi = shape_.alibi;
  for (std::int32_t head = 0; head < shape_.num_q_heads(); ++head) {
    alibi_slopes_.push_back(0.1f * std::abs(indexed_normal(shape_.seed, {kSlope, head})));
    sinks_.push_back(2.0f * indexed_normal(shape_.seed, {kSink, head}));
  }
  if (shape_.alibi != AlibiKind::kNone) variant.alibi_slopes = alibi_slopes_.data();
  if (shape_.sinks) variant.sinks = sinks_.data();
  const auto seqs = static_cast<std::size_t>(args_.num_seqs);
  if (shape_.mm_ranges > 0) {
    Random random(shape_.seed ^ 0x3a3a);
    for (std::size_t seq = 0; seq < seqs; ++seq) {
      for (std::int32_t i = 0; i < shape_.mm_ranges; ++i) {
        const std::int32_t start = random.between(0, std::max(0, seq_lens_[seq] - 1));
        mm_ranges_.push_back(start);
        mm_ranges_.push_back(std::min(seq_lens_[seq] - 1, start + random.between(0, 12)));
      }
    }
    variant.mm_prefix_ranges = mm_ranges_.data();
    variant.mm_prefix_max_ranges = shape_.mm_ranges;
  }
  for (const RequestShape& request : shape_.requests) {
    const bool has_tree = !request.tree_parents.empty();
    const std::int32_t size = has_tree ? request.query_len : 0;
    tree_size_.push_back(size);
    tree_mask_offset_.push_back(static_cast<std::int64_t>(tree_mask_.size()));
    tree_bias_offset_.push_back(static_cast<std::int64_t>(tree_bias_.size()));
    for (std::int32_t row = 0; row < size; ++row) {
      std::vector<std::uint64_t> words(static_cast<std::size_t>(ceil_div(size, 64)));
      for (std::int32_t node = row;; node = request.tree_parents[static_cast<std::size_t>(node - 1)]) {
        words[static_cast<std::size_t>(node / 64)] |= std::uint64_t{1} << (node % 64);
        if (node == 0) break;
      }
      tree_mask_.insert(tree_mask_.end(), words.begin(), words.end());
      for (std::int32_t node = 0; node < size; ++node) {
        tree_bias_.push_back(0.5f * indexed_normal(shape_.seed, {kBias, request.content, row, node}));
      }
    }
  }
  if (!tree_mask_.empty()) {
    variant.tree = {tree_size_.data(), tree_mask_offset_.data(), tree_mask_.data(), tree_bias_offset_.data(),
                    shape_.tree_bias ? tree_bias_.data() : nullptr};
  }
  if (shape_.is_differential()) {
    for (std::int32_t d = 0; d < 2 * shape_.head_size_v; ++d) {
      subln_weight_.push_back(1.0f + 0.2f * indexed_normal(shape_.seed, {kNorm, d}));
    }
    args_.differential = {.lambda = shape_.lambda,
                          .post_scale = 0.6f,
                          .eps = 1e-5f,
                          .subln_weight = shape_.subln ? subln_weight_.data() : nullptr};
  }
}

void AttentionCase::make_outputs() {
  const std::int64_t tokens = args_.num_tokens + shape_.padding_tokens;
  const std::int64_t width = static_cast<std::int64_t>(shape_.num_q_heads()) * shape_.head_size_v;
  args_.output_dtype = shape_.output_dtype;
  args_.output_head_stride = shape_.head_size_v;
  args_.output_token_stride = width;
  output_ = GuardedBuffer(bytes_of(shape_.output_dtype, tokens * width));
  args_.output = output_.data();
  args_.output_scale = shape_.output_scale;
  if (shape_.output_block_scales) {
    args_.output_block_scale_stride = ceil_div(width, 128);
    block_scales_ = GuardedBuffer(bytes_of(DType::kFloat32, tokens * args_.output_block_scale_stride));
    args_.output_block_scale = block_scales_.data<float>();
  }
  lse_ = GuardedBuffer(bytes_of(DType::kFloat32, tokens * shape_.num_q_heads()));
  args_.lse = lse_.data<float>();
  args_.lse_head_stride = tokens;
}

Status AttentionCase::run(const Runtime& runtime, PlanConfig config) {
  config.rows_per_token = args_.num_q_heads / args_.kv.num_kv_heads;
  const AttentionPlan plan = make_attention_plan(config, query_start_loc_, seq_lens_, args_.variant);
  make_outputs();
  workspace_ = GuardedBuffer(attention_workspace_bytes(args_, plan, runtime), 0xff);
  return paged_attention(args_, plan, runtime, workspace_.bytes());
}

std::vector<double> AttentionCase::output_row(std::int32_t token) const {
  const std::int64_t width = args_.output_token_stride;
  std::vector<double> row(static_cast<std::size_t>(width));
  for (std::int64_t i = 0; i < width; ++i) {
    double scale = args_.output_scale > 0.0f ? static_cast<double>(args_.output_scale) : 1.0;
    if (args_.output_block_scale != nullptr) {
      scale = args_.output_block_scale[token * args_.output_block_scale_stride + i / 128];
    }
    row[static_cast<std::size_t>(i)] = scale * load_as_float(args_.output, args_.output_dtype, token * width + i);
  }
  return row;
}

std::vector<unsigned char> AttentionCase::row_bits(std::int32_t token) const {
  const std::size_t row_bytes = bytes_of(args_.output_dtype, args_.output_token_stride);
  const auto* row = output_.data<unsigned char>() + static_cast<std::size_t>(token) * row_bytes;
  std::vector<unsigned char> bits(row, row + row_bytes);
  for (std::int32_t head = 0; head < args_.num_q_heads; ++head) {
    const float value = lse(head, token);
    const auto* bytes = reinterpret_cast<const unsigned char*>(&value);
    bits.insert(bits.end(), bytes, bytes + sizeof(value));
  }
  return bits;
}

float AttentionCase::lse(std::int32_t q_head, std::int32_t token) const {
  return args_.lse[q_head * args_.lse_head_stride + token];
}

std::vector<std::span<std::byte>> AttentionCase::inputs() {
  std::vector<std::span<std::byte>> parts;
  const auto add = [&](auto& values) { parts.push_back(std::as_writable_bytes(std::span(values))); };
  add(query_start_loc_);
  add(seq_lens_);
  add(kv_start_);
  add(block_table_);
  add(alibi_slopes_);
  add(sinks_);
  add(mm_ranges_);
  add(tree_size_);
  add(tree_mask_offset_);
  add(tree_mask_);
  add(tree_bias_offset_);
  add(tree_bias_);
  add(subln_weight_);
  add(shape_.causal_per_seq);
  for (const GuardedBuffer* buffer : {&query_, &cache_, &k_scales_, &v_scales_}) parts.push_back(buffer->bytes());
  return parts;
}

std::vector<std::span<std::byte>> AttentionCase::outputs() {
  return {output_.bytes(), block_scales_.bytes(), lse_.bytes()};
}

bool AttentionCase::is_memory_intact() const {
  for (const GuardedBuffer* buffer :
       {&query_, &cache_, &k_scales_, &v_scales_, &output_, &block_scales_, &lse_, &workspace_}) {
    if (!buffer->is_intact()) return false;
  }
  const std::size_t row_bytes = bytes_of(args_.output_dtype, args_.output_token_stride);
  const auto* output = output_.data<unsigned char>();
  const std::size_t begin = static_cast<std::size_t>(args_.num_tokens) * row_bytes;
  return std::all_of(output + begin, output + output_.size(), [](unsigned char byte) { return byte == 0xcd; });
}

}  // namespace quire::testing
