// quire explain: one configuration, every backend, every reason.
#include <iostream>
#include <memory>

#include "cli/command.h"
#include "cli/json.h"
#include "cli/runtime_options.h"
#include "cli/table.h"
#include "quire/backend.h"
#include "quire/cuda.h"

namespace quire::cli {
namespace {

struct ExplainFlags {
  AttentionConfig config;
  std::int32_t block_size = 0;
  std::string dtype = "bfloat16";
  std::string kv_cache_dtype = "auto";
  std::string attn_type = "decoder";
  std::string device = "cpu";
  std::string compute_capability;
  std::string backend;
  std::string format = "text";
};

Result<ComputeCapability> parse_compute_capability(const std::string& text) {
  const std::size_t point = text.find('.');
  const auto digits = [](const std::string& part) {
    return !part.empty() && part.size() <= 3 && part.find_first_not_of("0123456789") == std::string::npos;
  };
  if (point == std::string::npos || !digits(text.substr(0, point)) || !digits(text.substr(point + 1))) {
    return invalid_argument("compute-capability: want MAJOR.MINOR, for instance 9.0, got " + text);
  }
  return ComputeCapability{std::stoi(text.substr(0, point)), std::stoi(text.substr(point + 1))};
}

Result<AttentionConfig> resolve(const ExplainFlags& options) {
  AttentionConfig config = options.config;
  QUIRE_ASSIGN_OR_RETURN(config.dtype, parse_dtype(options.dtype));
  QUIRE_ASSIGN_OR_RETURN(config.kv_cache_dtype, parse_kv_cache_dtype(options.kv_cache_dtype));
  QUIRE_ASSIGN_OR_RETURN(config.attn_type, parse_attention_type(options.attn_type));
  QUIRE_ASSIGN_OR_RETURN(config.backplane, parse_backplane(options.device));
  if (options.block_size > 0) config.block_size = options.block_size;
  if (!options.compute_capability.empty()) {
    QUIRE_ASSIGN_OR_RETURN(config.device_capability, parse_compute_capability(options.compute_capability));
  } else if (config.backplane == Backplane::kCuda) {
    const Result<cuda::DeviceInfo> device = cuda::device_info();
    if (device.ok()) config.device_capability = {device->major, device->minor};
  }
  return config;
}

void print_text(const std::vector<BackendVerdict>& verdicts, const Result<BackendSelection>& selection) {
  for (const BackendVerdict& verdict : verdicts) {
    std::cout << verdict.backend->name() << ": " << (verdict.reasons.empty() ? "can run it" : "cannot run it") << '\n';
    for (const std::string& reason : verdict.reasons) std::cout << "  - " << reason << '\n';
  }
  std::cout << '\n';
  if (selection.ok()) {
    std::cout << "selected: " << selection->backend->name() << '\n';
  } else {
    std::cout << "selected: none: " << selection.status().message() << '\n';
  }
}

void print_json(const std::vector<BackendVerdict>& verdicts, const Result<BackendSelection>& selection) {
  JsonValue::Array backends;
  for (const BackendVerdict& verdict : verdicts) {
    backends.emplace_back(
        JsonValue::Object{{"name", verdict.backend->name()}, {"reasons", json_array(verdict.reasons)}});
  }
  const JsonValue selected = selection.ok() ? JsonValue(selection->backend->name()) : JsonValue();
  std::cout << json_text(JsonValue::Object{{"selected", selected}, {"backends", std::move(backends)}});
}

Result<int> run_explain(const ExplainFlags& options) {
  QUIRE_ASSIGN_OR_RETURN(const Format format, parse_format(options.format));
  QUIRE_ASSIGN_OR_RETURN(const AttentionConfig config, resolve(options));
  if (!options.backend.empty()) QUIRE_RETURN_IF_ERROR(find_backend(options.backend).status());
  std::vector<BackendVerdict> verdicts;
  for (const AttentionBackend* backend : registered_backends()) {
    verdicts.push_back({.backend = backend, .reasons = backend->validate_configuration(config)});
  }
  const Result<BackendSelection> selection = select_backend(config, options.backend);
  if (format == Format::kText) {
    print_text(verdicts, selection);
  } else if (format == Format::kJson) {
    print_json(verdicts, selection);
  } else {
    return invalid_argument("format: want text or json, got " + options.format);
  }
  return selection.ok() ? kExitOk : kExitFailure;
}

}  // namespace

std::function<int()> attach_explain(Usage& usage) {
  auto options = std::make_shared<ExplainFlags>();
  AttentionConfig& config = options->config;
  usage.options = {
      {"--head-size", &config.head_size, "Size of query and key heads"},
      {"--head-size-v", &config.head_size_v, "Size of value heads; 0: as --head-size"},
      {"--dtype", &options->dtype, "Of queries, keys and values"},
      {"--kv-cache-dtype", &options->kv_cache_dtype, "Of the cache"},
      {"--block-size", &options->block_size, "Tokens a block; 0: the backend's choice"},
      {"--attn-type", &options->attn_type, "decoder, encoder, encoder_only or encoder_decoder"},
      {"--sinks", &config.has_sink, "Attention sinks"},
      {"--mm-prefix", &config.use_mm_prefix, "Bidirectional ranges of multimodal tokens"},
      {"--alibi-sqrt", &config.use_alibi_sqrt, "Square-root ALiBi"},
      {"--non-causal", &config.use_non_causal, "Attention without the causal mask"},
      {"--output-quant", &config.use_output_quant, "fp8 output"},
      {"--per-head-scales", &config.use_per_head_quant_scales, "Quantisation scales by head"},
      {"--mla", &config.use_mla, "Multi-head latent attention"},
      {"--sparse", &config.use_sparse, "Sparse attention"},
      {"--batch-invariant", &config.use_batch_invariant, "Results that do not depend on the batch"},
      {"--kv-connector", &config.use_kv_connector, "A cache that another process fills"},
      {"--device", &options->device, "cpu, reference or cuda"},
      {"--compute-capability", &options->compute_capability,
       "Of the GPU, for instance 9.0 (default: of the one that is here)"},
      {"--backend", &options->backend, "Select this one instead of the first that can"},
      {"--format", &options->format, "text or json"},
  };
  usage.footer = "The exit status is 0 if a backend (the one named by --backend) can run the configuration.";
  return [options] {
    const Result<int> status = run_explain(*options);
    return status.ok() ? *status : report(status.status());
  };
}

}  // namespace quire::cli
