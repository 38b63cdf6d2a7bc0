// Logits of every decoder family against transformers' own, for prefill, chunked prefill and decode.
#include "unit/models/parity.h"

namespace quire::parity {
namespace {

struct Case {
  std::string name;
  std::string backend;
  std::string expected = {};  // folder of expected.safetensors, where it is another one
};

void PrintTo(const Case& one, std::ostream* out) { *out << one.name << " on " << one.backend; }

class Parity : public testing::TestWithParam<Case> {};

TEST_P(Parity, LogitsAreThoseOfTransformers) {
  const Case& one = GetParam();
  Result<std::unique_ptr<ModelRunner>> runner =
      load_runner(fixture(one.name), {.backend = one.backend, .dtype = DType::kFloat32});
  ASSERT_TRUE(runner.ok()) << runner.status().to_string();
  const SafetensorsFile expected =
      open_file(fixture(one.expected.empty() ? one.name : one.expected) + "/expected.safetensors");
  for (const std::int32_t length : kLengths) {
    const std::string suffix = "_" + std::to_string(length);
    const std::vector<std::int32_t> prompt = ids_of(expected, "input_ids" + suffix);
    for (const std::int32_t chunk : {128, 5}) {
      const Result<std::vector<float>> logits = run_chunks(**runner, prompt, 0, chunk);
      ASSERT_TRUE(logits.ok()) << logits.status().to_string();
      EXPECT_LE(relative_error(*logits, floats_of(expected, "logits" + suffix)), kTolerance)
          << "prompt of " << length << " in chunks of " << chunk;
    }
    // Row 0 of the generated logits is the prompt's last; each token then gives the next row.
    std::vector<std::int32_t> generated = ids_of(expected, "gen_ids" + suffix);
    const std::span<const float> want = floats_of(expected, "gen_logits" + suffix);
    const std::size_t vocab = want.size() / generated.size();
    generated.pop_back();
    const Result<std::vector<float>> decoded = run_chunks(**runner, generated, length, 1);
    ASSERT_TRUE(decoded.ok()) << decoded.status().to_string();
    EXPECT_LE(relative_error(*decoded, want.subspan(vocab)), kTolerance) << "decoding after " << length;
  }
}

std::string case_name(const testing::TestParamInfo<Case>& info) { return info.param.name + "_" + info.param.backend; }

INSTANTIATE_TEST_SUITE_P(Llama, Parity,
                         testing::Values(Case{"llama", "TRITON_ATTN"}, Case{"llama", "XFORMERS"},
                                         Case{"llama", "TREE_ATTN"}, Case{"llama_sharded", "TRITON_ATTN", "llama"},
                                         Case{"llama_bf16", "TRITON_ATTN"}, Case{"llama_f16", "TRITON_ATTN"},
                                         Case{"llama_linear", "TRITON_ATTN"}, Case{"llama_yarn", "TRITON_ATTN"},
                                         Case{"mistral", "TRITON_ATTN"}, Case{"mistral", "XFORMERS"},
                                         Case{"qwen2", "TRITON_ATTN"}, Case{"qwen2", "XFORMERS"},
                                         Case{"qwen3", "TRITON_ATTN"}, Case{"qwen3", "XFORMERS"}),
                         case_name);

}  // namespace
}  // namespace quire::parity
