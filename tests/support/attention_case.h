// AttentionCase: one attention call made from a small description, with owned, guarded and NaN-poisoned buffers.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "quire/attention.h"
#include "quire/kv_cache.h"
#include "quire/plan.h"
#include "quire/runtime.h"
#include "support/guarded_buffer.h"
#include "support/random.h"

namespace quire::testing {

// One request: rows [first_q_pos, first_q_pos + query_len) of a sequence whose first seq_len keys are there.
// `content` names the sequence: its queries, keys and values are functions of (seed, content, position).
struct RequestShape {
  std::int32_t content = 0;
  std::int32_t query_len = 1;
  std::int32_t seq_len = 1;
  std::vector<std::int32_t> tree_parents;  // empty: no tree; else query_len - 1 parents
};

// What decides a case. Equal shapes give equal bits.
struct CaseShape {
  std::uint64_t seed = 0;
  DType dtype = DType::kFloat32;         // of queries
  DType output_dtype = DType::kFloat32;  // activation type, or e4m3 with output_scale or block scales
  float output_scale = 0.0f;
  bool output_block_scales = false;
  bool contiguous = false;  // encoder form: keys and values [tokens, heads, size], no pages
  KVCacheFormat format = KVCacheFormat::kBlockFirst;
  KVCacheLayout layout = KVCacheLayout::kNHD;
  KVCacheDType cache_dtype = KVCacheDType::kAuto;
  ScalePlacement scales = ScalePlacement::kInline;
  std::int32_t num_layers = 1;  // > 1: the cache is one layer of a layered buffer
  float query_scale = 1.0f;
  float k_scale = 1.0f;
  float v_scale = 1.0f;
  std::int32_t num_kv_heads = 1;  // of the cache; even for the differential format
  std::int32_t group_size = 1;
  std::int32_t head_size = 16;
  std::int32_t head_size_v = 16;
  std::int32_t block_size = 16;
  std::int32_t padding_tokens = 0;  // rows of query and output behind the last token
  std::vector<RequestShape> requests;
  float scale = 0.25f;
  float softcap = 0.0f;
  bool causal = true;
  std::vector<std::uint8_t> causal_per_seq;
  std::int32_t window_left = -1;
  std::int32_t window_right = -1;
  std::int32_t chunk = 0;
  std::int32_t chunk_lookback = 0;
  AlibiKind alibi = AlibiKind::kNone;
  bool sinks = false;
  bool tree_bias = false;  // a float bias beside the masks
  std::int32_t mm_ranges = 0;
  float lambda = 0.5f;
  bool subln = true;

  std::int32_t num_q_heads() const { return num_kv_heads * group_size; }
  bool is_differential() const { return !contiguous && format == KVCacheFormat::kDifferential; }
};

// Draws a shape; every backend's format, codec, layout and term has a share. One number replays it.
CaseShape random_shape(std::uint64_t seed);
// A line for messages.
std::string describe(const CaseShape& shape);

class AttentionCase {
 public:
  explicit AttentionCase(const CaseShape& shape);

  const CaseShape& shape() const { return shape_; }
  // Arguments that point into this case.
  const AttentionArgs& args() const { return args_; }
  AttentionArgs& args() { return args_; }
  std::vector<std::int32_t>& query_start_loc() { return query_start_loc_; }
  std::vector<std::int32_t>& seq_lens() { return seq_lens_; }

  // Largest |value| that any key's value row holds, and a bound on |logit| before terms.
  double largest_value() const { return largest_value_; }
  double largest_logit() const { return largest_logit_; }

  // Runs attention on `runtime` through the public operation, planned as `config` says (rows_per_token is filled in).
  // The output buffers are poisoned before.
  Status run(const Runtime& runtime, PlanConfig config = {});
  // The output of a token as written, scales applied: [num_q_heads * head_size_v].
  std::vector<double> output_row(std::int32_t token) const;
  // Raw bytes of a token's output and of its lse, for comparisons bit by bit.
  std::vector<unsigned char> row_bits(std::int32_t token) const;
  float lse(std::int32_t q_head, std::int32_t token) const;
  // Everything that args() may point into, for a copy on a device: what kernels read, and what they write.
  std::vector<std::span<std::byte>> inputs();
  std::vector<std::span<std::byte>> outputs();
  // Guards of all buffers are intact and the padding rows are untouched.
  bool is_memory_intact() const;

 private:
  void make_batch();
  void make_queries();
  void make_cache();
  void make_paged_cache();
  void make_contiguous_cache();
  void fill_rows(KVSource& kv, std::int32_t seq);
  void store_vector(const KVRows& rows, std::int64_t place_page, std::int64_t place_token, std::int32_t kv_head,
                    const std::vector<float>& values);
  void make_terms();
  void make_outputs();

  CaseShape shape_;
  AttentionArgs args_;
  std::vector<std::int32_t> query_start_loc_;
  std::vector<std::int32_t> seq_lens_;
  std::vector<std::int32_t> kv_start_;
  std::vector<std::int32_t> block_table_;
  std::vector<float> alibi_slopes_;
  std::vector<float> sinks_;
  std::vector<std::int32_t> mm_ranges_;
  std::vector<std::int32_t> tree_size_;
  std::vector<std::int64_t> tree_mask_offset_;
  std::vector<std::uint64_t> tree_mask_;
  std::vector<std::int64_t> tree_bias_offset_;
  std::vector<float> tree_bias_;
  std::vector<float> subln_weight_;
  GuardedBuffer query_;
  GuardedBuffer cache_;
  GuardedBuffer k_scales_;
  GuardedBuffer v_scales_;
  GuardedBuffer output_;
  GuardedBuffer block_scales_;
  GuardedBuffer lse_;
  GuardedBuffer workspace_;
  double largest_value_ = 0.0;
  double largest_logit_ = 0.0;
};

// What a kernel's result may differ by from float64.
struct ErrorBound {
  double absolute = 0.0;  // of an element
  double relative = 0.0;
  double nmse = 0.0;  // mean squared error over mean squared value
};

struct Comparison {
  double worst_ratio = 0.0;  // worst |error| / bound of an element
  double nmse = 0.0;
  double nmse_bound = 0.0;
  double worst_lse = 0.0;
  double lse_bound = 0.0;
  bool ok() const { return worst_ratio <= 1.0 && nmse <= nmse_bound && worst_lse <= lse_bound; }
};

// Compares the outputs that run() left with the float64 reference; `isa_has_bf16_dot` widens the bound where bf16
// weights enter a dot product.
Comparison compare_with_reference(const AttentionCase& c, bool isa_has_bf16_dot);
// The same for kernels that round softmax weights to 16 bits wherever queries or the cache are narrower than float32.
Comparison compare_tensor_cores_with_reference(const AttentionCase& c);

}  // namespace quire::testing
