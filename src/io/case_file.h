// Attention case files (attention-case/1): one attention call of one backend on one batch, with the answer.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "io/safetensors.h"
#include "quire/status.h"
#include "quire/tensor.h"
#include "quire/tree.h"

namespace quire {

// The `config` of a case, in the file's own words; names of dtypes and layouts are parsed by whoever uses them.
struct CaseConfig {
  std::int32_t num_heads = 0;
  std::int32_t num_kv_heads = 0;
  std::int32_t head_size = 0;
  std::int32_t head_size_v = 0;
  double scale = 0.0;
  std::optional<std::int32_t> sliding_window;
  std::optional<double> logits_soft_cap;
  std::string kv_cache_dtype = "auto";
  std::int32_t block_size = 0;
  std::string attn_type = "decoder";
  bool use_alibi_sqrt = false;
  std::string kv_cache_layout = "NHD";
  std::int32_t num_actual_tokens = 0;
  std::int32_t num_blocks = 0;
  std::vector<TreePath> tree_choices;           // empty: no tree
  std::optional<std::int32_t> draft_query_len;  // 0: the root level
  std::optional<double> lambda_init;            // differential
  double subln_eps = 1e-5;
  bool kv_sharing = false;
};

// A case in memory. The views point into the file's read-only memory; absent tensors are empty views.
struct AttentionCase {
  explicit AttentionCase(SafetensorsFile opened) : file(std::move(opened)) {}

  SafetensorsFile file;
  std::string name;
  std::string backend;
  std::string oracle;
  CaseConfig config;
  double atol = 0.0;
  double rtol = 0.0;

  TensorView query;                                       // [tokens, num_heads, head_size]
  TensorView key, value;                                  // [tokens, num_kv_heads, head_size / head_size_v]
  TensorView kv_cache, kv_cache_after;                    // the backend's shape, in physical order
  TensorView block_table;                                 // int32 [seqs, blocks]
  TensorView query_start_loc, seq_lens;                   // int32 [seqs + 1], [seqs]
  TensorView slot_mapping;                                // int64 [tokens]
  TensorView alibi_slopes, sinks;                         // [num_heads]
  TensorView mm_prefix_range;                             // int32 [seqs, ranges, 2], inclusive
  TensorView k_scale, v_scale, output_scale;              // float32 [1]
  TensorView lambda_q1, lambda_k1, lambda_q2, lambda_k2;  // float32 [head_size]
  TensorView subln_weight;                                // float32 [2 * head_size]
  TensorView output;                                      // [tokens, num_heads, head_size_v]
};

// Reads and checks a case. Errors are kDataLoss (kNotFound if the file cannot be opened) and name the file and the key:
// another format, a missing or unknown key, a value of the wrong type or range, a tensor of another dtype or shape than
// the config asks for. Whether the batch itself makes sense is for the backend's builder to say.
Result<AttentionCase> read_attention_case(const std::string& path);
// The same of a file that is open already.
Result<AttentionCase> parse_attention_case(SafetensorsFile file);

}  // namespace quire
