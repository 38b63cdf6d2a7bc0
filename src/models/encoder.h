// EncoderStack: the layers that BERT and the encoder of BART share: every token sees all of its sequence, and each
// block is followed by a norm over the sum.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "models/attention.h"
#include "models/blocks.h"
#include "models/model.h"

namespace quire {

struct EncoderShape {
  std::int64_t hidden = 0;
  std::int64_t intermediate = 0;
  std::int32_t num_heads = 0;
  AttentionType type = AttentionType::kEncoderOnly;
  Activation activation = Activation::kGelu;
  float norm_eps = 1e-5f;
};

// Names of one layer's parts.
struct EncoderLayerNames {
  std::string q;
  std::string k;
  std::string v;
  std::string o;
  std::string attention_norm;
  std::string up;
  std::string down;
  std::string mlp_norm;
};

// The norms and positions in front of the layers: hidden = norm(tokens * scale + positions[position + offset]).
class EmbeddingSum {
 public:
  struct Spec {
    std::string positions = {};  // tensor [num_positions + offset, hidden]
    std::int64_t num_positions = 0;
    std::int64_t offset = 0;
    std::string norm = {};
    float norm_eps = 1e-5f;
  };
  static Result<EmbeddingSum> load(const LoadContext& context, const Spec& spec);
  // Adds the positions to the rows and normalises them. The caller has checked the positions.
  void run(const Rows& hidden, std::span<const std::int64_t> positions) const;

 private:
  TensorView positions_;
  std::int64_t offset_ = 0;
  Norm norm_;
};

class EncoderStack {
 public:
  static Result<EncoderStack> load(const LoadContext& context, const EncoderShape& shape,
                                   std::span<const EncoderLayerNames> names);

  // float32: what run works on.
  Rows hidden() const { return buffers_.hidden.rows(); }
  // compute: a copy of the result.
  Rows normed() const { return buffers_.normed.rows(); }
  // Runs all layers over rows of sequences: sequence i is rows [starts[i], starts[i + 1]). The caller has checked that
  // the rows fit.
  Status run(std::span<const std::int32_t> starts);

 private:
  explicit EncoderStack(AttentionOptions options) : attention_(std::move(options)) {}
  struct Layer {
    AttentionBlock attention;
    Norm attention_norm;
    PlainMlp mlp;
    Norm mlp_norm;
  };
  Status begin(std::span<const std::int32_t> starts);

  PagedAttention attention_;
  Buffers buffers_;
  std::vector<Layer> layers_;
  std::vector<std::int32_t> seq_lens_;
};

}  // namespace quire
