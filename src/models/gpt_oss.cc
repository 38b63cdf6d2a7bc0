// Implements GPT-OSS. Every token is computed by the experts that its router likes best; the rows of an expert are
// gathered, so that its two linear layers run once a step.
#include "models/gpt_oss.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <numeric>
#include <utility>

#include "core/convert.h"
#include "models/blocks.h"
#include "models/family.h"
#include "models/pre_norm_decoder.h"

namespace quire {
namespace {

struct ExpertShape {
  std::int32_t num_experts = 0;
  std::int32_t num_used = 0;  // by a token
  std::int32_t hidden = 0;
  std::int32_t intermediate = 0;
  float limit = 7.0f;  // of both halves of the activation's input
};

// A share that an expert has in a token's result.
struct Share {
  std::int32_t token = 0;
  float weight = 0.0f;
};

// Buffers of the mixture, sized once for all layers.
struct ExpertBuffers {
  RowBuffer router;    // float32 [rows, experts]
  RowBuffer gathered;  // compute [rows, hidden]
  RowBuffer result;    // float32 [rows, hidden]
  std::vector<std::vector<Share>> shares;
};

class Experts {
 public:
  static Result<Experts> load(const LoadContext& context, const std::string& prefix, const ExpertShape& shape,
                              std::shared_ptr<ExpertBuffers> buffers);
  // update = the weighted sum of the experts' results.
  Status run(const Buffers& buffers, std::int64_t num_tokens) const;

 private:
  struct Expert {
    Linear gate_up;
    Linear down;
  };
  Experts(const ExpertShape& shape, Linear router, std::shared_ptr<ExpertBuffers> buffers)
      : shape_(shape), router_(std::move(router)), own_(std::move(buffers)) {}
  void choose(const Rows& scores, std::int64_t num_tokens, std::vector<std::vector<Share>>& shares) const;
  Status run_expert(const Expert& expert, const Buffers& buffers, const std::vector<Share>& shares) const;

  ExpertShape shape_;
  Linear router_;
  std::vector<Expert> experts_;
  std::shared_ptr<ExpertBuffers> own_;  // of all layers
};

// Expert `index` of a stack of matrices [experts, in, out] with biases [experts, out].
struct StackedMatrix {
  std::string name;
  std::int64_t in = 0;
  std::int64_t out = 0;
};
Result<Linear> load_stacked(const LoadContext& context, const StackedMatrix& matrix, const ExpertShape& shape,
                            std::int64_t index, std::span<const std::int64_t> outputs) {
  QUIRE_ASSIGN_OR_RETURN(const TensorView weight,
                         context.checkpoint.tensor(matrix.name, {shape.num_experts, matrix.in, matrix.out}));
  QUIRE_ASSIGN_OR_RETURN(const TensorView bias,
                         context.checkpoint.tensor(matrix.name + "_bias", {shape.num_experts, matrix.out}));
  LinearWeights weights;
  weights.parts = {select(weight, 0, index)};
  weights.outputs = outputs;
  weights.order = WeightOrder::kInOut;
  for (std::int64_t i = 0; i < matrix.out; ++i) {
    weights.bias.push_back(load_as_float(bias.data, bias.dtype, index * matrix.out + i));
  }
  QUIRE_ASSIGN_OR_RETURN(Linear linear, Linear::create(weights, context.compute, context.options.tiling));
  context.info->weight_bytes += linear.weight_bytes();
  return linear;
}

Result<Experts> Experts::load(const LoadContext& context, const std::string& prefix, const ExpertShape& shape,
                              std::shared_ptr<ExpertBuffers> buffers) {
  QUIRE_ASSIGN_OR_RETURN(Linear router, load_linear(context, {.parts = {{prefix + "router", shape.num_experts}},
                                                              .in = shape.hidden,
                                                              .bias = HasBias::kYes}));
  Experts out(shape, std::move(router), std::move(buffers));
  // Gate and up alternate in the checkpoint; here all of the gate comes first.
  std::vector<std::int64_t> halves;
  for (const std::int64_t first : {0, 1}) {
    for (std::int64_t i = 0; i < shape.intermediate; ++i) halves.push_back(2 * i + first);
  }
  const StackedMatrix gate_up{prefix + "experts.gate_up_proj", shape.hidden, 2 * std::int64_t{shape.intermediate}};
  const StackedMatrix down{prefix + "experts.down_proj", shape.intermediate, shape.hidden};
  for (std::int32_t i = 0; i < shape.num_experts; ++i) {
    QUIRE_ASSIGN_OR_RETURN(Linear first, load_stacked(context, gate_up, shape, i, halves));
    QUIRE_ASSIGN_OR_RETURN(Linear second, load_stacked(context, down, shape, i, {}));
    out.experts_.push_back({std::move(first), std::move(second)});
  }
  return out;
}

// The best num_used experts of each token, weighted by the softmax over their scores; ties go to the lower number.
void Experts::choose(const Rows& scores, std::int64_t num_tokens, std::vector<std::vector<Share>>& shares) const {
  for (std::vector<Share>& list : shares) list.clear();
  std::vector<std::size_t> order(static_cast<std::size_t>(shape_.num_experts));
  for (std::int64_t token = 0; token < num_tokens; ++token) {
    const float* score = scores.row<float>(token);
    std::iota(order.begin(), order.end(), 0);
    const auto used = order.begin() + shape_.num_used;
    std::partial_sort(order.begin(), used, order.end(), [score](std::size_t a, std::size_t b) {
      return score[a] > score[b] || (score[a] == score[b] && a < b);
    });
    float sum = 0.0f;
    for (auto it = order.begin(); it != used; ++it) sum += std::exp(score[*it] - score[order.front()]);
    for (auto it = order.begin(); it != used; ++it) {
      shares[*it].push_back({static_cast<std::int32_t>(token), std::exp(score[*it] - score[order.front()]) / sum});
    }
  }
}

// middle = (up + 1) * gate * sigmoid(1.702 gate), both clamped.
void activate(const Rows& wide, std::int64_t num_rows, float limit, const Rows& middle) {
  for (std::int64_t row = 0; row < num_rows; ++row) {
    const float* gates = wide.row<float>(row);
    const float* ups = gates + middle.width;
    for (std::int64_t i = 0; i < middle.width; ++i) {
      const float gate = std::min(gates[i], limit);
      const float up = std::clamp(ups[i], -limit, limit);
      const float value = (up + 1.0f) * gate / (1.0f + std::exp(-1.702f * gate));
      store_from_float(middle.data, middle.dtype, row * middle.width + i, value);
    }
  }
}

Status Experts::run_expert(const Expert& expert, const Buffers& buffers, const std::vector<Share>& shares) const {
  const auto num_rows = static_cast<std::int64_t>(shares.size());
  const Rows from = buffers.normed.rows();
  const Rows gathered = own_->gathered.rows();
  const auto row_bytes = static_cast<std::size_t>(from.width * dtype_bytes(from.dtype));
  for (std::int64_t row = 0; row < num_rows; ++row) {
    const auto* source = static_cast<const std::byte*>(from.from(shares[static_cast<std::size_t>(row)].token).data);
    std::copy(source, source + row_bytes, static_cast<std::byte*>(gathered.from(row).data));
  }
  QUIRE_RETURN_IF_ERROR(expert.gate_up.run(gathered, num_rows, buffers.wide.rows()));
  activate(buffers.wide.rows(), num_rows, shape_.limit, buffers.middle.rows());
  QUIRE_RETURN_IF_ERROR(expert.down.run(buffers.middle.rows(), num_rows, own_->result.rows()));
  for (std::int64_t row = 0; row < num_rows; ++row) {
    const Share& share = shares[static_cast<std::size_t>(row)];
    const float* result = own_->result.rows().row<float>(row);
    float* update = buffers.update.rows().row<float>(share.token);
    for (std::int64_t i = 0; i < shape_.hidden; ++i) update[i] += share.weight * result[i];
  }
  return {};
}

Status Experts::run(const Buffers& buffers, std::int64_t num_tokens) const {
  QUIRE_RETURN_IF_ERROR(router_.run(buffers.normed.rows(), num_tokens, own_->router.rows()));
  choose(own_->router.rows(), num_tokens, own_->shares);
  std::fill_n(buffers.update.floats(), num_tokens * shape_.hidden, 0.0f);
  for (std::size_t i = 0; i < experts_.size(); ++i) {
    if (own_->shares[i].empty()) continue;
    QUIRE_RETURN_IF_ERROR(run_expert(experts_[i], buffers, own_->shares[i]));
  }
  return {};
}

class GptOss final : public PreNormDecoder<AttentionBlock, Experts> {
 public:
  explicit GptOss(const LoadContext& context) : PreNormDecoder(context, attention_options(context)) {}
  Status load(LoadContext& context);
};

Result<ExpertShape> read_expert_shape(const HfConfig& config, const DecoderShape& shape) {
  ExpertShape out{.hidden = shape.hidden, .intermediate = shape.intermediate};
  QUIRE_ASSIGN_OR_RETURN(out.num_experts, config.count("num_local_experts"));
  QUIRE_ASSIGN_OR_RETURN(const std::int32_t old_name, config.count_or("experts_per_token", 4));
  QUIRE_ASSIGN_OR_RETURN(out.num_used, config.count_or("num_experts_per_tok", old_name));
  if (out.num_used > out.num_experts) {
    return data_loss(config.path() + ": key 'num_experts_per_tok': want at most " + std::to_string(out.num_experts) +
                     ", got " + std::to_string(out.num_used));
  }
  QUIRE_ASSIGN_OR_RETURN(const double limit, config.number_or("swiglu_limit", 7.0));
  out.limit = static_cast<float>(limit);
  if (!(limit > 0.0)) return data_loss(config.path() + ": key 'swiglu_limit': want a positive number");
  QUIRE_RETURN_IF_ERROR(config.expect_text("hidden_act", "silu"));
  return out;
}

std::shared_ptr<ExpertBuffers> make_expert_buffers(const ExpertShape& shape, std::int64_t rows, DType compute) {
  auto out = std::make_shared<ExpertBuffers>();
  out->router = RowBuffer(rows, shape.num_experts, DType::kFloat32);
  out->gathered = RowBuffer(rows, shape.hidden, compute);
  out->result = RowBuffer(rows, shape.hidden, DType::kFloat32);
  out->shares.resize(static_cast<std::size_t>(shape.num_experts));
  return out;
}

Status GptOss::load(LoadContext& context) {
  const HfConfig& config = context.config();
  QUIRE_ASSIGN_OR_RETURN(const DecoderShape shape, read_decoder_shape(config));
  QUIRE_ASSIGN_OR_RETURN(const ExpertShape experts, read_expert_shape(config, shape));
  QUIRE_ASSIGN_OR_RETURN(const std::vector<std::optional<std::int32_t>> windows,
                         read_alternating_windows(config, shape));
  QUIRE_ASSIGN_OR_RETURN(const bool bias, config.flag_or("attention_bias", true));
  QUIRE_ASSIGN_OR_RETURN(rope_, make_rope_table(config, {.head_size = shape.head_size,
                                                         .num_positions = info_.max_model_len,
                                                         .default_theta = 150000.0}));
  const auto buffers = make_expert_buffers(experts, options_.max_tokens, context.compute);
  return load_standard(
      context, shape, [&](std::int32_t i, const std::string& prefix, AttentionBlockSpec& block) -> Result<Experts> {
        block.attention.sliding_window = windows[static_cast<std::size_t>(i)];
        block.qkv_bias = block.o_bias = bias ? HasBias::kYes : HasBias::kNo;
        QUIRE_ASSIGN_OR_RETURN(block.attention.sinks,
                               context.checkpoint.floats(prefix + "self_attn.sinks", {shape.num_heads}));
        return Experts::load(context, prefix + "mlp.", experts, buffers);
      });
}

constexpr std::array<std::string_view, 1> kGptOssHarmlessKeys = {"initial_context_length"};

}  // namespace

Result<std::unique_ptr<DecoderModel>> load_gpt_oss(LoadContext& context) {
  return load_family<GptOss>(context, kGptOssHarmlessKeys);
}

}  // namespace quire
