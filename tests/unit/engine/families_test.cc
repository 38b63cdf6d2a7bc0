// Every family through the engine: prompts of four lengths in one batch, in chunks, give the tokens of transformers.
#include "unit/engine/engine_support.h"
#include "unit/models/parity.h"

namespace quire::engine_test {
namespace {

class EngineFamilies : public testing::TestWithParam<const char*> {};

TEST_P(EngineFamilies, GenerateTheTokensOfTransformers) {
  const std::string folder = fixture(GetParam());
  const SafetensorsFile expected = parity::open_file(folder + "/expected.safetensors");
  for (const std::int32_t chunk : {0, 10}) {
    const std::unique_ptr<Engine> engine =
        make_engine({.model = folder, .dtype = DType::kFloat32, .max_prefill_chunk = chunk});
    ASSERT_NE(engine, nullptr);
    std::vector<GenerateRequest> requests;
    for (const std::int32_t length : parity::kLengths) {
      requests.push_back(greedy_request(parity::ids_of(expected, "input_ids_" + std::to_string(length)), 12));
    }
    const std::vector<Outcome> outcomes = run_all(*engine, std::move(requests));
    for (std::size_t i = 0; i < outcomes.size(); ++i) {
      const std::int32_t length = parity::kLengths[i];
      EXPECT_EQ(outcomes[i].tokens, parity::ids_of(expected, "gen_ids_" + std::to_string(length)))
          << "prompt " << length;
    }
  }
}

// Without a window or ALiBi a chain is verified on any backend: differential attention, values of another width.
TEST_P(EngineFamilies, ChainsOfDraftsChangeNothing) {
  const std::string folder = fixture(GetParam());
  if (GetParam() == std::string("bart")) {
    EXPECT_EQ(Engine::create({.model = folder, .draft = DraftKind::kNgram, .backend = "TRITON_ATTN"}).status().code(),
              StatusCode::kUnsupported);
    return;
  }
  const auto run = [&](std::optional<TreePolicy> tree) {
    EngineOptions options{.model = folder, .dtype = DType::kFloat32};
    // Named, since an engine with drafts would take TREE_ATTN, which not every family runs on.
    options.backend = make_engine({.model = folder, .dtype = DType::kFloat32})->info().backend;
    if (tree) options.draft = DraftKind::kNgram;
    const std::unique_ptr<Engine> engine = make_engine(std::move(options));
    const bool drafted = tree.has_value();
    GenerateRequest request = greedy_request({5, 6, 7, 5, 6, 7, 5, 6, 7, 5, 6}, 24);
    request.tree = std::move(tree);
    const Outcome outcome = run_one(*engine, std::move(request));
    EXPECT_EQ(engine->stats().speculation.verify_steps > 0, drafted);
    return outcome.tokens;
  };
  EXPECT_EQ(run(TreePolicy{.choices = *TokenTree::chain(3)}), run(std::nullopt));
}

INSTANTIATE_TEST_SUITE_P(Fixtures, EngineFamilies,
                         testing::Values("llama", "mistral", "qwen2", "qwen3", "gemma2", "gpt_oss", "bloom", "mpt",
                                         "deepseek_v2", "diffllama", "bart"),
                         [](const auto& one) { return std::string(one.param); });

}  // namespace
}  // namespace quire::engine_test
