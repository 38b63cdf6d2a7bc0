// Implements BART. The encoder runs once a request; its keys and values go into the caches of the decoder's
// cross-attention layers, which are paged like any other cache and never written again.
#include "models/bart.h"

#include <array>
#include <cmath>
#include <cstring>
#include <numeric>
#include <optional>
#include <utility>

#include "models/blocks.h"
#include "models/encoder.h"
#include "models/family.h"

namespace quire {
namespace {

constexpr float kNormEps = 1e-5f;            // no key says another
constexpr std::int64_t kPositionOffset = 2;  // the first rows of the position tables are unused

struct BartShape {
  std::int32_t hidden = 0;
  std::int32_t heads = 0;  // of the decoder
  std::int32_t encoder_heads = 0;
  std::int32_t encoder_layers = 0;
  std::int64_t encoder_ffn = 0;
  std::int64_t ffn = 0;
  std::int32_t num_positions = 0;
  Activation activation = Activation::kGelu;
  float embedding_scale = 1.0f;
};

// A decoder layer's attention to the encoder.
class CrossBlock {
 public:
  static Result<CrossBlock> load(const LoadContext& context, PagedAttention& attention, const BartShape& shape,
                                 const std::string& prefix);
  // Stores keys and values of the encoder's output at `slots`; `key_value` is scratch of twice the width.
  Status store(PagedAttention& attention, const Rows& encoded, const Rows& key_value, const TensorView& slots) const;
  // update = o(attention(q(normed), the encoder's keys and values)).
  Status run(PagedAttention& attention, const Buffers& buffers, std::int64_t num_tokens) const;

 private:
  CrossBlock(const AttentionLayerSpec& spec, Linear q, Linear key_value, Linear out)
      : num_heads_(spec.num_heads),
        head_size_(spec.head_size),
        q_(std::move(q)),
        key_value_(std::move(key_value)),
        out_(std::move(out)) {}

  std::int32_t layer_ = 0;
  std::int32_t num_heads_;
  std::int32_t head_size_;
  Linear q_;
  Linear key_value_;
  Linear out_;
};

AttentionLayerSpec attention_spec(const BartShape& shape, AttentionType type) {
  AttentionLayerSpec spec;
  spec.num_heads = spec.num_kv_heads = shape.heads;
  spec.head_size = shape.hidden / shape.heads;
  spec.scale = 1.0f / std::sqrt(static_cast<float>(spec.head_size));
  spec.type = type;
  return spec;
}

Result<CrossBlock> CrossBlock::load(const LoadContext& context, PagedAttention& attention, const BartShape& shape,
                                    const std::string& prefix) {
  const std::int64_t hidden = shape.hidden;
  const auto linear = [&](std::vector<LinearName> parts) {
    return load_linear(context, {.parts = std::move(parts), .in = hidden, .bias = HasBias::kYes});
  };
  QUIRE_ASSIGN_OR_RETURN(Linear q, linear({{prefix + "q_proj", hidden}}));
  QUIRE_ASSIGN_OR_RETURN(Linear key_value, linear({{prefix + "k_proj", hidden}, {prefix + "v_proj", hidden}}));
  QUIRE_ASSIGN_OR_RETURN(Linear out, linear({{prefix + "out_proj", hidden}}));
  const AttentionLayerSpec spec = attention_spec(shape, AttentionType::kEncoderDecoder);
  CrossBlock block(spec, std::move(q), std::move(key_value), std::move(out));
  QUIRE_ASSIGN_OR_RETURN(block.layer_, attention.add_layer(spec));
  return block;
}

Status CrossBlock::store(PagedAttention& attention, const Rows& encoded, const Rows& key_value,
                         const TensorView& slots) const {
  const std::int64_t num_tokens = slots.size(0);
  QUIRE_RETURN_IF_ERROR(key_value_.run(encoded, num_tokens, key_value));
  const std::int64_t width = static_cast<std::int64_t>(num_heads_) * head_size_;
  return attention.store(layer_, key_value.heads(num_tokens, 0, num_heads_, head_size_),
                         key_value.heads(num_tokens, width, num_heads_, head_size_), slots);
}

Status CrossBlock::run(PagedAttention& attention, const Buffers& buffers, std::int64_t num_tokens) const {
  // The queries take the place of the self-attention's values, which are in the cache by now.
  const std::int64_t width = static_cast<std::int64_t>(num_heads_) * head_size_;
  const Rows queries{buffers.qkv.rows().data, buffers.qkv.rows().dtype, width};
  QUIRE_RETURN_IF_ERROR(q_.run(buffers.normed.rows(), num_tokens, queries));
  AttentionCall call;
  call.query = queries.heads(num_tokens, 0, num_heads_, head_size_);
  call.output = buffers.heads.rows().heads(num_tokens, 0, num_heads_, head_size_);
  QUIRE_RETURN_IF_ERROR(attention.run(layer_, call));
  return out_.run(buffers.heads.rows(), num_tokens, buffers.update.rows());
}

class Bart final : public DecoderModel {
 public:
  explicit Bart(const LoadContext& context) : DecoderModel(context, attention_options(context)) {
    info_.is_encoder_decoder = true;
  }
  Status load(LoadContext& context);
  Status encode(std::span<const std::int32_t> tokens, std::span<const std::int64_t> slots) override;

 private:
  struct Layer {
    AttentionBlock attention;
    Norm attention_norm;
    CrossBlock cross;
    Norm cross_norm;
    PlainMlp mlp;
    Norm mlp_norm;
  };
  Status load_encoder(LoadContext context, const BartShape& shape);
  Result<Layer> load_layer(const LoadContext& context, const BartShape& shape, const std::string& prefix);
  Status after_embedding(const StepInput& step) override;
  Status run_layer(std::int32_t index, std::int64_t num_tokens) override;
  // hidden = norm(hidden + update), and its copy in normed.
  void add_and_norm(const Norm& norm, std::int64_t num_tokens);

  float embedding_scale_ = 1.0f;
  TensorView words_;
  std::optional<EmbeddingSum> encoder_embedding_;
  std::optional<EncoderStack> encoder_;
  std::optional<EmbeddingSum> embedding_;
  std::vector<Layer> layers_;
  RowBuffer key_value_;
  std::vector<std::int64_t> positions_;
};

// Flags of the files that older converters wrote: variants of the layer that BART itself does not use.
Status check_variant(const HfConfig& config) {
  QUIRE_RETURN_IF_ERROR(config.expect_flag("is_encoder_decoder", true));
  QUIRE_RETURN_IF_ERROR(config.expect_flag("is_decoder", false));
  QUIRE_RETURN_IF_ERROR(config.expect_flag("tie_word_embeddings", true));
  QUIRE_RETURN_IF_ERROR(config.expect_flag("add_bias_logits", false));
  QUIRE_RETURN_IF_ERROR(config.expect_flag("add_final_layer_norm", false));
  QUIRE_RETURN_IF_ERROR(config.expect_flag("normalize_before", false));
  QUIRE_RETURN_IF_ERROR(config.expect_flag("normalize_embedding", true));
  QUIRE_RETURN_IF_ERROR(config.expect_flag("static_position_embeddings", false));
  return config.expect_number("extra_pos_embeddings", kPositionOffset);
}

Result<BartShape> read_bart_shape(const HfConfig& config, std::int32_t hidden) {
  BartShape shape{.hidden = hidden};
  QUIRE_RETURN_IF_ERROR(check_variant(config));
  QUIRE_ASSIGN_OR_RETURN(shape.heads, config.count("decoder_attention_heads"));
  QUIRE_ASSIGN_OR_RETURN(shape.encoder_heads, config.count("encoder_attention_heads"));
  QUIRE_ASSIGN_OR_RETURN(shape.encoder_layers, config.count("encoder_layers"));
  QUIRE_ASSIGN_OR_RETURN(shape.encoder_ffn, config.count("encoder_ffn_dim"));
  QUIRE_ASSIGN_OR_RETURN(shape.ffn, config.count("decoder_ffn_dim"));
  QUIRE_ASSIGN_OR_RETURN(shape.num_positions, config.count("max_position_embeddings"));
  QUIRE_ASSIGN_OR_RETURN(shape.activation, read_activation(config, "activation_function", "gelu"));
  QUIRE_ASSIGN_OR_RETURN(const bool scaled, config.flag_or("scale_embedding", false));
  if (scaled) shape.embedding_scale = std::sqrt(static_cast<float>(hidden));
  if (hidden % shape.heads != 0 || hidden % shape.encoder_heads != 0) {
    return data_loss(config.path() +
                     ": keys 'encoder_attention_heads' and 'decoder_attention_heads': want divisors of " +
                     std::to_string(hidden) + ", got " + std::to_string(shape.encoder_heads) + " and " +
                     std::to_string(shape.heads));
  }
  return shape;
}

EmbeddingSum::Spec embedding_spec(const BartShape& shape, const std::string& prefix) {
  return {.positions = prefix + "embed_positions.weight",
          .num_positions = shape.num_positions,
          .offset = kPositionOffset,
          .norm = prefix + "layernorm_embedding",
          .norm_eps = kNormEps};
}

// A request's encoder input is never cut, so that its buffers are as long as a sequence may be.
Status Bart::load_encoder(LoadContext context, const BartShape& shape) {
  context.options.max_tokens = info_.max_model_len;
  QUIRE_ASSIGN_OR_RETURN(encoder_embedding_, EmbeddingSum::load(context, embedding_spec(shape, "encoder.")));
  std::vector<EncoderLayerNames> names;
  for (std::int32_t i = 0; i < shape.encoder_layers; ++i) {
    const std::string prefix = "encoder.layers." + std::to_string(i) + ".";
    names.push_back({.q = prefix + "self_attn.q_proj",
                     .k = prefix + "self_attn.k_proj",
                     .v = prefix + "self_attn.v_proj",
                     .o = prefix + "self_attn.out_proj",
                     .attention_norm = prefix + "self_attn_layer_norm",
                     .up = prefix + "fc1",
                     .down = prefix + "fc2",
                     .mlp_norm = prefix + "final_layer_norm"});
  }
  const EncoderShape encoder{.hidden = shape.hidden,
                             .intermediate = shape.encoder_ffn,
                             .num_heads = shape.encoder_heads,
                             .type = AttentionType::kEncoder,
                             .activation = shape.activation,
                             .norm_eps = kNormEps};
  QUIRE_ASSIGN_OR_RETURN(encoder_, EncoderStack::load(context, encoder, names));
  return {};
}

Result<Bart::Layer> Bart::load_layer(const LoadContext& context, const BartShape& shape, const std::string& prefix) {
  AttentionBlockSpec block;
  block.attention = attention_spec(shape, AttentionType::kDecoder);
  block.q = prefix + "self_attn.q_proj";
  block.k = prefix + "self_attn.k_proj";
  block.v = prefix + "self_attn.v_proj";
  block.o = prefix + "self_attn.out_proj";
  block.hidden = shape.hidden;
  block.qkv_bias = block.o_bias = HasBias::kYes;
  const Norm norm{.kind = NormKind::kLayer, .eps = kNormEps};
  QUIRE_ASSIGN_OR_RETURN(AttentionBlock attention, AttentionBlock::load(context, attention_, block));
  QUIRE_ASSIGN_OR_RETURN(Norm attention_norm, load_norm(context, prefix + "self_attn_layer_norm", shape.hidden, norm));
  QUIRE_ASSIGN_OR_RETURN(CrossBlock cross, CrossBlock::load(context, attention_, shape, prefix + "encoder_attn."));
  QUIRE_ASSIGN_OR_RETURN(Norm cross_norm, load_norm(context, prefix + "encoder_attn_layer_norm", shape.hidden, norm));
  QUIRE_ASSIGN_OR_RETURN(PlainMlp mlp, PlainMlp::load(context, {.up = prefix + "fc1",
                                                                .down = prefix + "fc2",
                                                                .hidden = shape.hidden,
                                                                .intermediate = shape.ffn,
                                                                .activation = shape.activation,
                                                                .bias = HasBias::kYes}));
  QUIRE_ASSIGN_OR_RETURN(Norm mlp_norm, load_norm(context, prefix + "final_layer_norm", shape.hidden, norm));
  return Layer{std::move(attention), std::move(attention_norm), std::move(cross), std::move(cross_norm),
               std::move(mlp),       std::move(mlp_norm)};
}

// Copies of the shared table, which some files carry, must hold the same.
Status check_copies(const Checkpoint& checkpoint, const TensorView& shared) {
  const auto bytes = static_cast<std::size_t>(shared.num_elements() * dtype_bytes(shared.dtype));
  for (const char* name : {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"}) {
    if (!checkpoint.contains(name)) continue;
    QUIRE_ASSIGN_OR_RETURN(const TensorView copy, checkpoint.tensor(name, {shared.size(0), shared.size(1)}));
    if (copy.dtype == shared.dtype && std::memcmp(copy.data, shared.data, bytes) == 0) continue;
    return unsupported(checkpoint.folder() + ": tensor '" + name + "': want what 'shared.weight' holds, got another");
  }
  return {};
}

Status Bart::load(LoadContext& context) {
  const HfConfig& config = context.config();
  QUIRE_ASSIGN_OR_RETURN(const BartShape shape, read_bart_shape(config, info_.hidden_size));
  embedding_scale_ = shape.embedding_scale;
  QUIRE_ASSIGN_OR_RETURN(words_, context.checkpoint.tensor("shared.weight", {info_.vocab_size, shape.hidden}));
  QUIRE_RETURN_IF_ERROR(check_copies(context.checkpoint, words_));
  QUIRE_RETURN_IF_ERROR(load_encoder(context, shape));
  QUIRE_ASSIGN_OR_RETURN(embedding_, EmbeddingSum::load(context, embedding_spec(shape, "decoder.")));
  for (std::int32_t i = 0; i < info_.num_layers; ++i) {
    QUIRE_ASSIGN_OR_RETURN(Layer layer, load_layer(context, shape, "decoder.layers." + std::to_string(i) + "."));
    layers_.push_back(std::move(layer));
  }
  const std::int64_t hidden = shape.hidden;
  buffers_ =
      make_buffers({.hidden = hidden, .qkv = 3 * hidden, .heads = hidden, .wide = shape.ffn, .middle = shape.ffn},
                   options_.max_tokens, context.compute);
  key_value_ = RowBuffer(info_.max_model_len, 2 * hidden, context.compute);
  const bool has_bias = context.checkpoint.contains("final_logits_bias");
  return load_ends(context, {.embedding = "shared.weight",
                             .embedding_scale = shape.embedding_scale,
                             .head_bias = has_bias ? HasBias::kYes : HasBias::kNo});
}

Status Bart::encode(std::span<const std::int32_t> tokens, std::span<const std::int64_t> slots) {
  const auto num_tokens = static_cast<std::int64_t>(tokens.size());
  if (num_tokens < 1 || num_tokens > info_.max_model_len || slots.size() != tokens.size()) {
    return out_of_range("tokens of the encoder: want 1 to " + std::to_string(info_.max_model_len) +
                        " and as many slots, got " + std::to_string(num_tokens) + " and " +
                        std::to_string(slots.size()));
  }
  for (const std::int32_t token : tokens) {
    if (token >= 0 && token < info_.vocab_size) continue;
    return out_of_range("tokens: want [0, " + std::to_string(info_.vocab_size) + "), got " + std::to_string(token));
  }
  embed_rows(words_, tokens, embedding_scale_, encoder_->hidden());
  positions_.resize(tokens.size());
  std::iota(positions_.begin(), positions_.end(), 0);
  encoder_embedding_->run(encoder_->hidden(), positions_);
  const std::array starts = {0, static_cast<std::int32_t>(num_tokens)};
  QUIRE_RETURN_IF_ERROR(encoder_->run(starts));
  TensorView slot_view;
  slot_view.data = const_cast<std::int64_t*>(slots.data());
  slot_view.dtype = DType::kInt64;
  slot_view.rank = 1;
  slot_view.shape = {num_tokens};
  slot_view.strides = {1};
  for (const Layer& layer : layers_) {
    QUIRE_RETURN_IF_ERROR(layer.cross.store(attention_, encoder_->normed(), key_value_.rows(), slot_view));
  }
  return {};
}

Status Bart::after_embedding(const StepInput& step) {
  embedding_->run(buffers_.hidden.rows(), step.positions);
  convert_rows(buffers_.hidden.rows(), static_cast<std::int64_t>(step.tokens.size()), buffers_.normed.rows());
  return {};
}

void Bart::add_and_norm(const Norm& norm, std::int64_t num_tokens) {
  const Rows hidden = buffers_.hidden.rows();
  add_rows(hidden, num_tokens, buffers_.update.rows());
  apply_norm(norm, hidden, num_tokens, hidden);
  convert_rows(hidden, num_tokens, buffers_.normed.rows());
}

Status Bart::run_layer(std::int32_t index, std::int64_t num_tokens) {
  const Layer& layer = layers_[static_cast<std::size_t>(index)];
  QUIRE_RETURN_IF_ERROR(layer.attention.run(attention_, buffers_, num_tokens, nullptr));
  add_and_norm(layer.attention_norm, num_tokens);
  QUIRE_RETURN_IF_ERROR(layer.cross.run(attention_, buffers_, num_tokens));
  add_and_norm(layer.cross_norm, num_tokens);
  QUIRE_RETURN_IF_ERROR(layer.mlp.run(buffers_, num_tokens));
  add_and_norm(layer.mlp_norm, num_tokens);
  return {};
}

// How text is generated or the model was made, and the encoder's layers under another name.
constexpr std::array<std::string_view, 12> kBartHarmlessKeys = {"num_hidden_layers",
                                                                "decoder_start_token_id",
                                                                "forced_eos_token_id",
                                                                "forced_bos_token_id",
                                                                "num_beams",
                                                                "early_stopping",
                                                                "length_penalty",
                                                                "no_repeat_ngram_size",
                                                                "task_specific_params",
                                                                "prefix",
                                                                "output_past",
                                                                "force_bos_token_to_be_generated"};

}  // namespace

Result<std::unique_ptr<DecoderModel>> load_bart(LoadContext& context) {
  return load_family<Bart>(context, kBartHarmlessKeys);
}

}  // namespace quire
