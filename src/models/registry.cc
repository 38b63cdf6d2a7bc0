// The one list of model families: architecture, loader and where its configuration says how long sequences may be.
#include <algorithm>
#include <array>
#include <cmath>
#include <string>

#include "models/bart.h"
#include "models/bloom.h"
#include "models/deepseek_v2.h"
#include "models/diff_llama.h"
#include "models/gemma2.h"
#include "models/gpt_oss.h"
#include "models/llama.h"
#include "models/model.h"
#include "models/mpt.h"

namespace quire {
namespace {

// Whether a longer sequence than the configuration names can be computed at all.
enum class Length : std::uint8_t { kLimited, kOpen };

struct Family {
  std::string_view architecture;
  Result<std::unique_ptr<DecoderModel>> (*load)(LoadContext& context);
  std::string_view length_key = "max_position_embeddings";
  Length length = Length::kLimited;
  std::string_view hidden_key = "hidden_size";
  std::string_view layers_key = "num_hidden_layers";
  std::string_view old_hidden_key = {};  // what older files call hidden_key
};

constexpr std::array kFamilies = {
    Family{"LlamaForCausalLM", load_llama},
    Family{"MistralForCausalLM", load_llama},
    Family{"Qwen2ForCausalLM", load_llama},
    Family{"Qwen3ForCausalLM", load_llama},
    Family{"Gemma2ForCausalLM", load_gemma2},
    Family{"GptOssForCausalLM", load_gpt_oss},
    Family{.architecture = "BloomForCausalLM",
           .load = load_bloom,
           .length_key = "seq_length",
           .length = Length::kOpen,
           .layers_key = "n_layer",
           .old_hidden_key = "n_embed"},
    Family{.architecture = "MptForCausalLM",
           .load = load_mpt,
           .length_key = "max_seq_len",
           .length = Length::kOpen,
           .hidden_key = "d_model",
           .layers_key = "n_layers"},
    Family{.architecture = "MPTForCausalLM",
           .load = load_mpt,
           .length_key = "max_seq_len",
           .length = Length::kOpen,
           .hidden_key = "d_model",
           .layers_key = "n_layers"},
    Family{"DeepseekV2ForCausalLM", load_deepseek_v2},
    Family{"DiffLlamaForCausalLM", load_diff_llama},
    Family{.architecture = "BartForConditionalGeneration",
           .load = load_bart,
           .hidden_key = "d_model",
           .layers_key = "decoder_layers"},
};

std::string known_architectures() {
  std::string out;
  for (const Family& family : kFamilies) out += (out.empty() ? "" : ", ") + std::string(family.architecture);
  return out;
}

// A dynamic rope may run `factor` times further than the positions that it was trained on.
Result<double> length_factor(const HfConfig& config) {
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    if (!config.has(key)) continue;
    QUIRE_ASSIGN_OR_RETURN(const HfConfig scaling, config.object(key));
    QUIRE_ASSIGN_OR_RETURN(const std::string old_type, scaling.text_or("type", ""));
    QUIRE_ASSIGN_OR_RETURN(const std::string type, scaling.text_or("rope_type", old_type));
    if (type == "dynamic") return scaling.number_or("factor", 1.0);
  }
  return 1.0;
}

Result<std::int32_t> read_length(const HfConfig& config, const Family& family, std::int32_t wanted) {
  QUIRE_ASSIGN_OR_RETURN(const std::int32_t trained, config.count_or(family.length_key, 2048));
  QUIRE_ASSIGN_OR_RETURN(const double factor, length_factor(config));
  if (wanted == 0) return trained;
  const double longest = trained * std::max(factor, 1.0);
  if (family.length == Length::kLimited && wanted > longest) {
    return invalid_argument("max_model_len: want at most " + std::to_string(static_cast<std::int64_t>(longest)) + " (" +
                            config.path() + ", '" + std::string(family.length_key) + "'), got " +
                            std::to_string(wanted));
  }
  return wanted;
}

// float16 checkpoints run in float32, which holds their values exactly.
Result<DType> choose_compute(const Checkpoint& checkpoint, const ModelOptions& options) {
  QUIRE_ASSIGN_OR_RETURN(const DType stored, checkpoint.dtype());
  const DType wanted = options.dtype.value_or(stored == DType::kFloat16 ? DType::kFloat32 : stored);
  if (wanted != DType::kFloat32 && wanted != DType::kBFloat16) {
    return invalid_argument("dtype: want float32 or bfloat16, got " + std::string(dtype_name(wanted)));
  }
  if (wanted == DType::kBFloat16 && !has_bfloat16_linear() && !options.dtype) return DType::kFloat32;
  return wanted;
}

}  // namespace

std::vector<std::string_view> decoder_architectures() {
  std::vector<std::string_view> out;
  for (const Family& family : kFamilies) out.push_back(family.architecture);
  return out;
}

Result<std::unique_ptr<DecoderModel>> load_decoder(std::shared_ptr<const Checkpoint> owner,
                                                   const ModelOptions& options) {
  const Checkpoint& checkpoint = *owner;
  const HfConfig& config = checkpoint.config();
  QUIRE_ASSIGN_OR_RETURN(const std::string architecture, checkpoint.architecture());
  const auto family = std::find_if(kFamilies.begin(), kFamilies.end(),
                                   [&](const Family& one) { return one.architecture == architecture; });
  if (family == kFamilies.end()) {
    return unsupported(config.path() + ": key 'architectures': want one of " + known_architectures() + ", got " +
                       architecture);
  }
  ModelInfo info;
  info.architecture = architecture;
  QUIRE_ASSIGN_OR_RETURN(info.vocab_size, config.count("vocab_size"));
  const bool old = !family->old_hidden_key.empty() && !config.has(family->hidden_key);
  QUIRE_ASSIGN_OR_RETURN(info.hidden_size, config.count(old ? family->old_hidden_key : family->hidden_key));
  QUIRE_ASSIGN_OR_RETURN(info.num_layers, config.count(family->layers_key));
  QUIRE_ASSIGN_OR_RETURN(info.max_model_len, read_length(config, *family, options.max_model_len));
  LoadContext context{.checkpoint = checkpoint, .options = options, .info = &info};
  QUIRE_ASSIGN_OR_RETURN(context.compute, choose_compute(checkpoint, options));
  info.dtype = context.compute;
  context.options.max_model_len = info.max_model_len;
  QUIRE_ASSIGN_OR_RETURN(std::unique_ptr<DecoderModel> model, family->load(context));
  model->keep(std::move(owner));
  return model;
}

}  // namespace quire
