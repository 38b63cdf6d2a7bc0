// random_shape: draws attention cases over every dtype, codec, layout, shape and term.
#include <algorithm>
#include <cmath>

#include "support/attention_case.h"

namespace quire::testing {
namespace {

void draw_form(Random& random, CaseShape& shape) {
  shape.dtype = random.pick({DType::kBFloat16, DType::kBFloat16, DType::kFloat16, DType::kFloat32});
  shape.output_dtype = shape.dtype;
  shape.contiguous = random.chance(0.12);
  shape.format = random.pick({KVCacheFormat::kBlockFirst, KVCacheFormat::kBlockFirst, KVCacheFormat::kKVFirst,
                              KVCacheFormat::kPackedKV, KVCacheFormat::kDifferential});
  const bool has_layouts = shape.format == KVCacheFormat::kBlockFirst || shape.format == KVCacheFormat::kPackedKV;
  if (has_layouts && random.chance(0.4)) shape.layout = KVCacheLayout::kHND;
  if (has_layouts && random.chance(0.25)) shape.num_layers = random.between(2, 3);
  if (shape.contiguous) return;
  if (random.chance(0.5)) {
    shape.cache_dtype = random.pick({KVCacheDType::kFp8E4M3, KVCacheDType::kFp8E5M2, KVCacheDType::kInt8PerTokenHead,
                                     KVCacheDType::kFp8PerTokenHead, KVCacheDType::kFloat16, KVCacheDType::kBFloat16});
  }
  if (random.chance(0.4)) shape.scales = ScalePlacement::kSeparate;
  if (shape.cache_dtype == KVCacheDType::kFp8E4M3 || shape.cache_dtype == KVCacheDType::kFp8E5M2) {
    shape.k_scale = static_cast<float>(std::exp2(4.0 * random.uniform() - 6.0));
    shape.v_scale = static_cast<float>(std::exp2(4.0 * random.uniform() - 6.0));
    if (shape.dtype == DType::kBFloat16 && random.chance(0.3)) {
      shape.dtype = DType::kFloat8E4M3;
      shape.query_scale = 0.03125f;
    }
  }
}

void draw_sizes(Random& random, CaseShape& shape) {
  shape.num_kv_heads = random.between(1, 3);
  if (shape.is_differential()) shape.num_kv_heads = random.pick({2, 2, 4});
  shape.group_size = random.pick({1, 1, 2, 3, 4, 5, 7, 8});
  shape.head_size = random.pick({8, 12, 16, 16, 24, 32, 32, 40, 64, 64, 72, 80, 96, 128, 160, 192, 256});
  shape.head_size_v = shape.head_size;
  const bool free_v = shape.contiguous || shape.format == KVCacheFormat::kPackedKV;
  if (free_v && random.chance(0.7)) shape.head_size_v = random.pick({8, 16, 20, 32, 48, 64, 128});
  const bool inline_scales = is_per_token_head(shape.cache_dtype) && shape.scales == ScalePlacement::kInline;
  if (!inline_scales && !free_v && random.chance(0.15))
    shape.head_size = shape.head_size_v = random.pick({9, 11, 17, 33, 65});
  shape.block_size = random.pick({1, 2, 3, 5, 8, 16, 16, 16, 32, 48, 64});
  shape.scale = static_cast<float>((0.5 + 1.5 * random.uniform()) / std::sqrt(shape.head_size));
  shape.padding_tokens = random.chance(0.3) ? random.between(1, 3) : 0;
}

std::int32_t draw_length(Random& random) {
  const double kind = random.uniform();
  if (kind < 0.45) return random.between(0, 20);
  if (kind < 0.85) return random.between(10, 150);
  return random.between(100, 400);
}

void draw_requests(Random& random, CaseShape& shape) {
  const bool may_have_trees = !shape.contiguous && random.chance(0.3);
  const std::int32_t count = random.between(1, 4);
  for (std::int32_t i = 0; i < count; ++i) {
    RequestShape request;
    request.content = i;
    const double kind = random.uniform();
    request.query_len = kind < 0.5 ? 1 : kind < 0.8 ? random.between(2, 9) : kind < 0.95 ? random.between(10, 40) : 0;
    const std::int32_t context = shape.contiguous ? 0 : draw_length(random);
    if (may_have_trees && request.query_len > 1 && random.chance(0.8)) {
      for (std::int32_t node = 1; node < request.query_len; ++node)
        request.tree_parents.push_back(random.between(0, node - 1));
    }
    request.seq_len = context + request.query_len;
    shape.requests.push_back(request);
  }
  // Now and then one long sequence, small in every other way, so that splits are crossed.
  if (random.chance(0.02)) {
    shape.requests.resize(1);
    shape.requests[0].seq_len = random.between(1020, 2100);
    shape.head_size = std::min(shape.head_size, 32);
    shape.head_size_v = std::min(shape.head_size_v, 32);
    if (shape.format != KVCacheFormat::kPackedKV && !shape.contiguous) shape.head_size_v = shape.head_size;
    shape.requests[0].query_len = std::min(shape.requests[0].query_len, 4);
    shape.requests[0].tree_parents.clear();
    if (shape.contiguous) shape.requests[0].query_len = 2;
  }
}

void draw_terms(Random& random, CaseShape& shape) {
  const bool has_tree =
      std::any_of(shape.requests.begin(), shape.requests.end(), [](const auto& r) { return !r.tree_parents.empty(); });
  shape.tree_bias = has_tree && random.chance(0.4);
  if (!has_tree && random.chance(shape.contiguous ? 0.8 : 0.15)) shape.causal = false;
  if (!has_tree && random.chance(0.1)) {
    for (std::size_t i = 0; i < shape.requests.size(); ++i) shape.causal_per_seq.push_back(random.chance(0.5) ? 1 : 0);
  }
  if (random.chance(0.25)) shape.softcap = random.pick({0.5f, 5.0f, 30.0f});
  if (random.chance(0.25)) shape.alibi = random.pick({AlibiKind::kLinear, AlibiKind::kSqrt, AlibiKind::kDistance});
  if (random.chance(0.3)) shape.window_left = random.pick({0, 1, 7, 15, 63, 64, 200, 2147483647});
  if (!shape.causal && random.chance(0.4)) shape.window_right = random.pick({0, 1, 7, 15, 63, 64, 200});
  if (random.chance(0.08)) {
    shape.chunk = random.pick({16, 32, 64, 100});
    shape.chunk_lookback = random.pick({0, 0, 1, 2});
  }
  shape.sinks = random.chance(0.25);
  if (!has_tree && random.chance(0.12)) shape.mm_ranges = random.between(1, 3);
  shape.lambda = static_cast<float>(0.1 + 0.8 * random.uniform());
  shape.subln = random.chance(0.7);
}

void draw_output(Random& random, CaseShape& shape) {
  if (!is_activation(shape.output_dtype)) shape.output_dtype = DType::kBFloat16;
  if (shape.dtype == DType::kFloat8E4M3) shape.output_dtype = DType::kBFloat16;
  const double kind = random.uniform();
  if (kind < 0.06) {
    shape.output_dtype = DType::kFloat8E4M3;
    shape.output_scale = 0.015625f * static_cast<float>(random.between(1, 4));
  } else if (kind < 0.12) {
    shape.output_dtype = DType::kFloat8E4M3;
    shape.output_block_scales = true;
  } else if (kind < 0.2) {
    shape.output_dtype = DType::kFloat32;
  }
}

}  // namespace

CaseShape random_shape(std::uint64_t seed) {
  Random random(seed);
  CaseShape shape;
  shape.seed = seed;
  draw_form(random, shape);
  draw_sizes(random, shape);
  draw_requests(random, shape);
  draw_terms(random, shape);
  draw_output(random, shape);
  return shape;
}

std::string describe(const CaseShape& shape) {
  std::string text = "seed " + std::to_string(shape.seed) + ": q " + std::string(dtype_name(shape.dtype)) + " out " +
                     std::string(dtype_name(shape.output_dtype));
  const auto add = [&](const char* name, auto value) { text += std::string(" ") + name + " " + std::to_string(value); };
  if (shape.contiguous) {
    text += " contiguous";
  } else {
    add("format", static_cast<int>(shape.format));
    text += " " + std::string(kv_cache_layout_name(shape.layout)) + " kv " +
            std::string(kv_cache_dtype_name(shape.cache_dtype));
    if (shape.scales == ScalePlacement::kSeparate) text += " separate-scales";
    add("layers", shape.num_layers);
    add("block_size", shape.block_size);
  }
  add("kv_heads", shape.num_kv_heads);
  add("group", shape.group_size);
  add("head_size", shape.head_size);
  add("head_size_v", shape.head_size_v);
  for (const RequestShape& request : shape.requests) {
    text += " (" + std::to_string(request.query_len) + "," + std::to_string(request.seq_len) +
            (request.tree_parents.empty() ? ")" : ",tree)");
  }
  if (!shape.causal) text += " non-causal";
  if (!shape.causal_per_seq.empty()) text += " causal-per-seq";
  if (shape.softcap > 0) add("softcap", shape.softcap);
  if (shape.alibi != AlibiKind::kNone) add("alibi", static_cast<int>(shape.alibi));
  if (shape.window_left >= 0) add("window_left", shape.window_left);
  if (shape.window_right >= 0) add("window_right", shape.window_right);
  if (shape.chunk > 0) add("chunk", shape.chunk);
  if (shape.sinks) text += " sinks";
  if (shape.tree_bias) text += " tree-bias";
  if (shape.mm_ranges > 0) add("mm_ranges", shape.mm_ranges);
  if (shape.output_block_scales) text += " block-scales";
  if (shape.is_differential()) text += shape.subln ? " subln" : " no-subln";
  return text;
}

}  // namespace quire::testing
