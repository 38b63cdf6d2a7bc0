// Fuzz target: any text as config.json beside the weights of the fixture of its architecture; what loads also runs.
#include <array>
#include <map>
#include <memory>
#include <numeric>
#include <vector>

#include "engine/model_runner.h"
#include "fuzz/scratch.h"
#include "models/bert.h"
#include "models/checkpoint.h"

namespace {

using namespace quire;

constexpr std::array<std::pair<std::string_view, std::string_view>, 12> kFixtures{
    {{"LlamaForCausalLM", "llama"},
     {"MistralForCausalLM", "mistral"},
     {"Qwen2ForCausalLM", "qwen2"},
     {"Qwen3ForCausalLM", "qwen3"},
     {"Gemma2ForCausalLM", "gemma2"},
     {"GptOssForCausalLM", "gpt_oss"},
     {"BloomForCausalLM", "bloom"},
     {"MptForCausalLM", "mpt"},
     {"DeepseekV2ForCausalLM", "deepseek_v2"},
     {"DiffLlamaForCausalLM", "diffllama"},
     {"BartForConditionalGeneration", "bart"},
     {"BertModel", "bert"}}};
constexpr std::array<std::int32_t, 3> kTokens{1, 2, 3};
constexpr std::int32_t kBlocks = 4;

// The folder of a family: its weights, linked, and the config.json of this input.
const fuzz::ScratchFolder& folder_of(std::string_view architecture) {
  static std::map<std::string_view, std::unique_ptr<fuzz::ScratchFolder>> folders;
  std::string_view fixture = "llama";
  for (const auto& [name, weights] : kFixtures) {
    if (name == architecture) fixture = weights;
  }
  std::unique_ptr<fuzz::ScratchFolder>& folder = folders[fixture];
  if (folder == nullptr) {
    folder = std::make_unique<fuzz::ScratchFolder>();
    const std::string weights = std::string(QUIRE_SOURCE_DIR) + "/tests/fixtures/" + std::string(fixture);
    std::filesystem::create_symlink(weights + "/model.safetensors", folder->path() + "/model.safetensors");
  }
  return *folder;
}

void run_encoder(const Checkpoint& checkpoint, const ModelOptions& options) {
  const auto encoder = BertEncoder::load(checkpoint, options);
  constexpr std::array<std::int32_t, 2> kStarts{0, 3};
  if (encoder.ok()) (void)(*encoder)->forward({.tokens = kTokens, .starts = kStarts});
}

void run_decoder(Checkpoint checkpoint, const ModelOptions& options) {
  auto model = load_decoder(std::make_shared<const Checkpoint>(std::move(checkpoint)), options);
  if (!model.ok()) return;
  ModelRunner runner(std::move(model).value());
  const auto bytes = runner.model().attention().block_bytes();
  if (!bytes.ok() || *bytes > (1 << 24) || !runner.model().attention().allocate(kBlocks).ok()) return;
  std::array<BlockId, 2> blocks{0, 1};
  std::array<BlockId, 2> cross{2, 3};
  SequenceRows rows{.tokens = kTokens, .blocks = blocks};
  if (runner.info().is_encoder_decoder) {
    if (!runner.encode(kTokens, cross).ok()) return;
    rows.cross_blocks = cross;
    rows.cross_len = static_cast<std::int32_t>(kTokens.size());
  }
  (void)runner.run({&rows, 1});
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text = fuzz::text_of(data, size);
  const auto config = HfConfig::parse(text, "fuzz");
  if (!config.ok()) return 0;
  const auto names = config->texts("architectures");
  const std::string architecture = names.ok() && !names->empty() ? names->front() : "";
  const fuzz::ScratchFolder& folder = folder_of(architecture);
  folder.write("config.json", text);
  auto checkpoint = Checkpoint::open(folder.path());
  if (!checkpoint.ok()) return 0;
  const ModelOptions options{.dtype = DType::kFloat32, .max_tokens = 8, .max_outputs = 8};
  if (architecture == "BertModel") {
    run_encoder(*checkpoint, options);
  } else {
    run_decoder(std::move(checkpoint).value(), options);
  }
  return 0;
}
