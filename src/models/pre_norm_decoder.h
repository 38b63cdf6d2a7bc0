// PreNormDecoder: the layers of most decoders, hidden += attention(norm(hidden)) and then hidden += mlp(norm(hidden)).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "models/blocks.h"
#include "models/family.h"
#include "models/model.h"
#include "models/rope.h"

namespace quire {

template <class Attention = AttentionBlock, class Mlp = GatedMlp>
class PreNormDecoder : public DecoderModel {
 protected:
  using DecoderModel::DecoderModel;
  using DecoderModel::Ends;

  // Tensor names of the ends that most families have.
  static Ends standard_ends(const DecoderShape& shape) {
    return {.embedding = "embed_tokens.weight",
            .head = shape.tied ? "" : "lm_head.weight",
            .final_norm = "norm",
            .norm = {.eps = shape.norm_eps}};
  }

  struct Norms {
    std::string before_attention = "input_layernorm";
    std::string before_mlp = "post_attention_layernorm";
    Norm kind = {};
  };
  // Loads the norms behind `prefix` and appends the layer.
  Status add_layer(const LoadContext& context, const std::string& prefix, const Norms& norms,
                   std::pair<Attention, Mlp> parts) {
    const std::int64_t width = info_.hidden_size;
    QUIRE_ASSIGN_OR_RETURN(Norm first, load_norm(context, prefix + norms.before_attention, width, norms.kind));
    QUIRE_ASSIGN_OR_RETURN(Norm second, load_norm(context, prefix + norms.before_mlp, width, norms.kind));
    layers_.push_back({std::move(first), std::move(parts.first), std::move(second), std::move(parts.second)});
    return {};
  }

  // Everything behind the rotary table of a family that names its tensors as Llama does. load_mlp(layer, prefix, block)
  // changes what is the layer's own about its attention and returns its Mlp.
  template <class LoadMlp>
  Status load_standard(LoadContext& context, const DecoderShape& shape, LoadMlp load_mlp) {
    for (std::int32_t i = 0; i < info_.num_layers; ++i) {
      const std::string prefix = "layers." + std::to_string(i) + ".";
      AttentionBlockSpec block = standard_attention_block(shape, prefix + "self_attn.");
      QUIRE_ASSIGN_OR_RETURN(Mlp mlp, load_mlp(i, prefix, block));
      QUIRE_ASSIGN_OR_RETURN(Attention attention, Attention::load(context, attention_, block));
      QUIRE_RETURN_IF_ERROR(
          add_layer(context, prefix, {.kind = {.eps = shape.norm_eps}}, {std::move(attention), std::move(mlp)}));
    }
    buffers_ = make_buffers(standard_widths(shape), options_.max_tokens, context.compute);
    return load_ends(context, standard_ends(shape));
  }

  std::optional<RopeTable> rope_;  // none: positions come from elsewhere

 private:
  struct Layer {
    Norm input_norm;
    Attention attention;
    Norm mlp_norm;
    Mlp mlp;
  };
  Status run_layer(std::int32_t index, std::int64_t num_tokens) final {
    const Layer& layer = layers_[static_cast<std::size_t>(index)];
    RopeTable* rope = rope_ ? &*rope_ : nullptr;
    QUIRE_RETURN_IF_ERROR(add_block(layer.input_norm, num_tokens,
                                    [&] { return layer.attention.run(attention_, buffers_, num_tokens, rope); }));
    return add_block(layer.mlp_norm, num_tokens, [&] { return layer.mlp.run(buffers_, num_tokens); });
  }

  std::vector<Layer> layers_;
};

}  // namespace quire
