// The two blocks of a decoder layer that most families share: attention over stacked q, k and v, and the MLPs.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "models/model.h"

namespace quire {

struct AttentionBlockSpec {
  AttentionLayerSpec attention;
  std::string q;  // names of the projections
  std::string k;
  std::string v;
  std::string o;
  std::int64_t hidden = 0;
  HasBias qkv_bias = HasBias::kNo;
  HasBias o_bias = HasBias::kNo;
  std::vector<std::int64_t> outputs;  // order of the stacked q, k, v outputs; empty: as in the checkpoint
  std::string q_norm;                 // RMSNorm of each head before the rotation; empty: none
  std::string k_norm;
  float norm_eps = 1e-6f;
};

// update = o(attention(qkv(normed))).
class AttentionBlock {
 public:
  static Result<AttentionBlock> load(const LoadContext& context, PagedAttention& attention,
                                     const AttentionBlockSpec& spec);
  // A block whose projections the family built itself: `qkv` gives q, then k, then v, heads in attention's order.
  AttentionBlock(std::int32_t layer, const AttentionLayerSpec& spec, Linear qkv, Linear out);
  Status run(PagedAttention& attention, const Buffers& buffers, std::int64_t num_tokens, RopeTable* rope) const;
  // Clamps q, k and v to [-limit, limit] (MPT's clip_qkv).
  void set_clip(float limit) { clip_ = limit; }

 private:
  std::int32_t layer_ = 0;
  std::int32_t num_heads_ = 0;
  std::int32_t num_kv_heads_ = 0;
  std::int32_t head_size_ = 0;
  float clip_ = 0.0f;
  Linear qkv_;
  Linear out_;
  std::optional<Norm> q_norm_;
  std::optional<Norm> k_norm_;
};
// Width of the qkv rows and of the heads' rows of a layer.
std::int64_t qkv_width(const AttentionLayerSpec& spec);
std::int64_t heads_width(const AttentionLayerSpec& spec);

// update = down(act(gate(normed)) * up(normed)).
class GatedMlp {
 public:
  struct Spec {
    std::string prefix = {};  // in front of gate_proj, up_proj, down_proj
    std::int64_t hidden = 0;
    std::int64_t intermediate = 0;
    Activation activation = Activation::kSilu;
    HasBias bias = HasBias::kNo;
  };
  static Result<GatedMlp> load(const LoadContext& context, const Spec& spec);
  Status run(const Buffers& buffers, std::int64_t num_tokens) const;

 private:
  GatedMlp(Linear gate_up, Linear down, Activation activation)
      : gate_up_(std::move(gate_up)), down_(std::move(down)), activation_(activation) {}
  Linear gate_up_;
  Linear down_;
  Activation activation_;
};

// update = down(act(up(normed))).
class PlainMlp {
 public:
  struct Spec {
    std::string up = {};
    std::string down = {};
    std::int64_t hidden = 0;
    std::int64_t intermediate = 0;
    Activation activation = Activation::kGelu;
    HasBias bias = HasBias::kNo;
  };
  static Result<PlainMlp> load(const LoadContext& context, const Spec& spec);
  Status run(const Buffers& buffers, std::int64_t num_tokens) const;

 private:
  PlainMlp(Linear up, Linear down, Activation activation)
      : up_(std::move(up)), down_(std::move(down)), activation_(activation) {}
  Linear up_;
  Linear down_;
  Activation activation_;
};

}  // namespace quire
