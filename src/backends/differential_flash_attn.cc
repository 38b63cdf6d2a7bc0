// DIFFERENTIAL_FLASH_ATTN: two softmaxes over pairs of heads, the second subtracted lambda times, then a norm.
#include <cmath>
#include <string>

#include "backends/layer_config.h"
#include "backends/paged_impl.h"

namespace quire::backends {
namespace {

constexpr std::array<std::string_view, 3> kDifferentialNotes = {
    "Heads 2p and 2p + 1 are the two streams of pair p; K1, K2 and [V1 V2] are read once.",
    "Chunked prefill, prefix caching, mixed batches and any rows of layers that share a cache are taken.",
    "It computes another function than the others, so it is chosen by name only.",
};

constexpr BackendTraits kDifferentialTraits = {
    .name = "DIFFERENTIAL_FLASH_ATTN",
    .summary = "Differential attention: RMSNorm(softmax1 - lambda * softmax2) over paired heads.",
    .notes = kDifferentialNotes,
    .format = KVCacheFormat::kDifferential,
    .automatic = false,
    .cudagraph = CudagraphSupport::kUniformSingleTokenDecode,
    .order = BatchOrder::kPrefillsFirst,
    .reorder = ReorderForm::kPrefillsFirst,
    .threshold = DecodeThreshold::kOne,
    .batch_order = "prefills first, then decodes (1 token)",
};

Status check_length(std::string_view name, std::span<const float> values, std::int32_t wanted) {
  if (values.size() == static_cast<std::size_t>(wanted)) return {};
  return invalid_argument("differential." + std::string(name) + ": want " + std::to_string(wanted) + " values, got " +
                          std::to_string(values.size()));
}

Status check_differential(const ImplConfig& config) {
  if (!config.differential) {
    return invalid_argument("differential: want the lambdas and the sub-layer norm of the layer, got none");
  }
  const DifferentialConfig& own = *config.differential;
  QUIRE_RETURN_IF_ERROR(check_length("lambda_q1", own.lambda_q1, config.head_size));
  QUIRE_RETURN_IF_ERROR(check_length("lambda_k1", own.lambda_k1, config.head_size));
  QUIRE_RETURN_IF_ERROR(check_length("lambda_q2", own.lambda_q2, config.head_size));
  QUIRE_RETURN_IF_ERROR(check_length("lambda_k2", own.lambda_k2, config.head_size));
  QUIRE_RETURN_IF_ERROR(check_length("subln_weight", own.subln_weight, 2 * config.head_size));
  if (!(own.subln_eps > 0.0f)) {
    return invalid_argument("differential.subln_eps: want > 0, got " + std::to_string(own.subln_eps));
  }
  if (!own.lambda_init && own.layer_idx < 0) {
    return invalid_argument("differential.layer_idx: want >= 0, got " + std::to_string(own.layer_idx));
  }
  return {};
}

double exp_dot(std::span<const float> a, std::span<const float> b) {
  double sum = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return std::exp(sum);
}

class DifferentialImpl final : public PagedImpl {
 public:
  // The configuration has been checked.
  static Result<std::unique_ptr<AttentionImpl>> create(const ImplConfig& config) {
    QUIRE_ASSIGN_OR_RETURN(Arrays arrays, place_arrays(config));
    QUIRE_ASSIGN_OR_RETURN(LayerFloats weight, LayerFloats::place(config.differential->subln_weight, config.runtime));
    return std::unique_ptr<AttentionImpl>(new DifferentialImpl(config, std::move(arrays), std::move(weight)));
  }

 protected:
  void finish_args(AttentionArgs& args) const override { args.differential = combine_; }

 private:
  DifferentialImpl(const ImplConfig& config, Arrays arrays, LayerFloats subln_weight)
      : PagedImpl(kDifferentialTraits, config, std::move(arrays)), subln_weight_(std::move(subln_weight)) {
    const DifferentialConfig& own = *config.differential;
    const double init = own.lambda_init.value_or(0.8 - 0.6 * std::exp(-0.3 * own.layer_idx));
    const double lambda = exp_dot(own.lambda_q1, own.lambda_k1) - exp_dot(own.lambda_q2, own.lambda_k2) + init;
    combine_ = {.lambda = static_cast<float>(lambda),
                .post_scale = static_cast<float>(1.0 - init),
                .eps = own.subln_eps,
                .subln_weight = subln_weight_.data()};
  }

  LayerFloats subln_weight_;
  DifferentialCombine combine_;
};

class DifferentialBackend final : public BuiltinBackend {
 public:
  DifferentialBackend() : BuiltinBackend(kDifferentialTraits) {}

  Result<std::unique_ptr<AttentionImpl>> make_impl(const ImplConfig& config) const override {
    QUIRE_RETURN_IF_ERROR(check_impl_config(kDifferentialTraits, config));
    QUIRE_RETURN_IF_ERROR(check_differential(config));
    return DifferentialImpl::create(config);
  }
};

}  // namespace

std::unique_ptr<AttentionBackend> make_differential_flash_attn() { return std::make_unique<DifferentialBackend>(); }

}  // namespace quire::backends
