// DecoderModel: what the engine sees of a model family, and the parts that every family shares.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "models/attention.h"
#include "models/checkpoint.h"
#include "models/linear.h"
#include "models/ops.h"
#include "models/rows.h"
#include "quire/status.h"

namespace quire {

struct ModelOptions {
  std::string backend = {};         // empty: as the family and the selector decide
  std::optional<DType> dtype = {};  // of linear layers and attention: float32 or bfloat16; none: the checkpoint's
  KVCacheDType kv_cache_dtype = KVCacheDType::kAuto;
  std::int32_t block_size = 16;
  RowTiling tiling = RowTiling::kByCount;
  std::int64_t max_tokens = 512;   // rows of a step
  std::int64_t max_outputs = 64;   // rows of a step whose logits are wanted
  std::int32_t max_model_len = 0;  // 0: max_position_embeddings
  Runtime runtime = {};
};

struct ModelInfo {
  std::string architecture;
  std::int32_t vocab_size = 0;
  std::int32_t hidden_size = 0;
  std::int32_t num_layers = 0;
  std::int32_t max_model_len = 0;
  DType dtype = DType::kFloat32;
  std::int64_t weight_bytes = 0;  // of the linear layers
  bool is_encoder_decoder = false;
};

// The tokens of a step, batched as the attention metadata says.
struct StepInput {
  std::span<const std::int32_t> tokens;     // [num_tokens]
  std::span<const std::int64_t> positions;  // [num_tokens]
  std::span<const std::int32_t> outputs;    // rows whose logits are wanted
};

// What a family's constructor needs: the checkpoint and everything that was decided before it is read.
struct LoadContext {
  const Checkpoint& checkpoint;
  ModelOptions options = {};
  DType compute = DType::kFloat32;
  ModelInfo* info = nullptr;

  const HfConfig& config() const { return checkpoint.config(); }
};

enum class HasBias : std::uint8_t { kNo, kYes };
// "<name>.weight" [out, in] and "<name>.bias" [out].
struct LinearName {
  std::string name;
  std::int64_t out = 0;
};
struct LinearSpec {
  std::vector<LinearName> parts = {};  // stacked
  std::int64_t in = 0;
  HasBias bias = HasBias::kNo;
  std::span<const std::int64_t> outputs = {};  // order of the stacked outputs
};
Result<Linear> load_linear(const LoadContext& context, const LinearSpec& spec);
Result<Norm> load_norm(const LoadContext& context, const std::string& name, std::int64_t width, Norm kind);

// Activations of a step; a family asks for the widths it needs.
struct Buffers {
  RowBuffer hidden;  // float32: the residual stream
  RowBuffer normed;  // compute
  RowBuffer qkv;     // compute
  RowBuffer heads;   // compute: attention's output
  RowBuffer update;  // float32: what a block adds to the stream
  RowBuffer wide;    // float32: the MLP before its activation
  RowBuffer middle;  // compute: after it
};
struct BufferWidths {
  std::int64_t hidden = 0;
  std::int64_t qkv = 0;
  std::int64_t heads = 0;
  std::int64_t wide = 0;
  std::int64_t middle = 0;
};
Buffers make_buffers(const BufferWidths& widths, std::int64_t rows, DType compute);

class DecoderModel {
 public:
  virtual ~DecoderModel() = default;
  const ModelInfo& info() const { return info_; }
  void keep(std::shared_ptr<const Checkpoint> checkpoint) { checkpoint_ = std::move(checkpoint); }
  PagedAttention& attention() { return attention_; }

  // Runs the step that attention().begin_step described; logits is float32 [outputs, vocab_size]. Errors: a token
  // outside the vocabulary, a position beyond max_model_len.
  Status forward(const StepInput& step, std::span<float> logits);

  // Encoder-decoder models: runs the encoder over one request's tokens and fills the cross-attention caches at `slots`.
  virtual Status encode(std::span<const std::int32_t> tokens, std::span<const std::int64_t> slots);

 protected:
  DecoderModel(const LoadContext& context, AttentionOptions attention)
      : info_(*context.info), options_(context.options), attention_(std::move(attention)) {}

  // The families' part: the rows of buffers_.hidden after embedding, one layer, and the logits after the head.
  virtual Status after_embedding(const StepInput& step) { return static_cast<void>(step), Status(); }
  virtual Status run_layer(std::int32_t layer, std::int64_t num_tokens) = 0;
  // hidden += block() of norm(hidden); the block reads buffers_.normed and writes buffers_.update.
  template <class Block>
  Status add_block(const Norm& norm, std::int64_t num_tokens, Block block) {
    apply_norm(norm, buffers_.hidden.rows(), num_tokens, buffers_.normed.rows());
    QUIRE_RETURN_IF_ERROR(block());
    add_rows(buffers_.hidden.rows(), num_tokens, buffers_.update.rows());
    return {};
  }
  virtual void finish_logits(const Rows& logits, std::int64_t num_rows) {
    static_cast<void>(logits), static_cast<void>(num_rows);
  }

  // Loads the embedding table and the head, which may be tied.
  struct Ends {
    std::string embedding = {};  // tensor name
    std::string head = {};       // tensor name; empty: tied
    std::string final_norm = {};
    Norm norm = {};  // kind and eps
    float embedding_scale = 1.0f;
    HasBias head_bias = HasBias::kNo;
  };
  Status load_ends(const LoadContext& context, const Ends& ends);

  ModelInfo info_;
  ModelOptions options_;
  PagedAttention attention_;
  Buffers buffers_;

 private:
  std::shared_ptr<const Checkpoint> checkpoint_;
  TensorView embedding_;
  float embedding_scale_ = 1.0f;
  std::optional<Norm> final_norm_;
  std::unique_ptr<Linear> head_;
  RowBuffer output_hidden_;
  RowBuffer output_normed_;
  RowBuffer logits_;
};

// The usual attention options of a context.
AttentionOptions attention_options(const LoadContext& context, std::string_view preferred_backend = {});

// Loads a decoder (or encoder-decoder) by the architecture that config.json names.
// The model keeps the checkpoint, whose embedding table it reads.
Result<std::unique_ptr<DecoderModel>> load_decoder(std::shared_ptr<const Checkpoint> checkpoint,
                                                   const ModelOptions& options);
// The architectures that load_decoder knows.
std::vector<std::string_view> decoder_architectures();

}  // namespace quire
