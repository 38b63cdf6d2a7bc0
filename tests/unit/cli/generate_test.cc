// quire generate and quire bench --engine as a user meets them.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "cli/bench_engine_report.h"
#include "cli/generate_options.h"

namespace quire::cli {
namespace {

struct Outcome {
  int status = -1;
  std::string text;  // standard output and error
};

Outcome quire_command(const std::string& arguments) {
  const std::string line = std::string(QUIRE_COMMAND) + " " + arguments + " 2>&1";
  Outcome out;
  FILE* pipe = popen(line.c_str(), "r");
  if (pipe == nullptr) return out;
  std::array<char, 4096> buffer{};
  for (std::size_t got = 0; (got = fread(buffer.data(), 1, buffer.size(), pipe)) > 0;) {
    out.text.append(buffer.data(), got);
  }
  out.status = WEXITSTATUS(pclose(pipe));
  return out;
}

bool has(const Outcome& outcome, const std::string& part) { return outcome.text.find(part) != std::string::npos; }

std::string model(const std::string& name) {
  return "--model " + std::string(QUIRE_SOURCE_DIR) + "/models/shakespeare-" + name;
}
const std::string kDraft = " --draft " + std::string(QUIRE_SOURCE_DIR) + "/models/shakespeare-draft";

TEST(Generate, SpeculationWritesTheSameText) {
  const std::string run =
      "generate " + model("llama") + " --batch-invariant --prompt ROMEO: --max-tokens 30 --seed 5 --summary none";
  const Outcome plain = quire_command(run);
  EXPECT_EQ(plain.status, 0) << plain.text;
  EXPECT_GT(plain.text.size(), 40u);
  EXPECT_EQ(quire_command(run + kDraft).text, plain.text);
  EXPECT_EQ(quire_command(run + kDraft + " --tree \"[(0,), (1,), (0, 0)]\"").text, plain.text);
  EXPECT_EQ(quire_command(run + " --ngram --tree chain:3").text, plain.text);
}

TEST(Generate, SummarySaysWhatWasAccepted) {
  const Outcome text = quire_command("generate " + model("llama") + kDraft + " --prompt ROMEO: --max-tokens 20");
  EXPECT_TRUE(has(text, "on TREE_ATTN") && has(text, "tokens a verified tree")) << text.text;
  const Outcome csv =
      quire_command("generate " + model("diff") + " --prompt A --max-tokens 4 --summary csv --name own");
  EXPECT_TRUE(has(csv, "own,DIFFERENTIAL_FLASH_ATTN,auto,4,")) << csv.text;
}

TEST(Generate, BatchesAreJsonLines) {
  const std::filesystem::path path = std::filesystem::temp_directory_path() / "quire_generate_test.jsonl";
  std::ofstream(path) << "{\"prompt\": \"KING:\", \"max_tokens\": 3}\n\n{\"prompt\": \"QUEEN:\", \"temperature\": 0}\n";
  const std::string run =
      "generate " + model("llama") + " --max-tokens 5 --ignore-eos --summary none --batch " + path.string();
  const Outcome good = quire_command(run);
  EXPECT_EQ(good.status, 0) << good.text;
  EXPECT_TRUE(has(good, R"("index":0,"prompt":"KING:")") && has(good, R"("tokens":3,"finish_reason":"length")"))
      << good.text;
  EXPECT_TRUE(has(good, R"("index":1,"prompt":"QUEEN:")") && has(good, R"("tokens":5,)")) << good.text;
  std::ofstream(path) << "{\"prompt\": \"KING:\"}\n{\"prompt\": \"QUEEN:\", \"min_p\": 0.1}\n";
  const Outcome bad = quire_command(run);
  EXPECT_EQ(bad.status, 1);
  EXPECT_TRUE(has(bad, ":2: key 'min_p'")) << bad.text;
  std::filesystem::remove(path);
}

// An encoder-decoder: the prompt goes to the encoder, the answer comes from the decoder alone.
TEST(Generate, RunsAnEncoderDecoder) {
  const std::filesystem::path folder = std::filesystem::temp_directory_path() / "quire_generate_bart";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directory(folder);
  for (const char* file : {"config.json", "generation_config.json", "model.safetensors"}) {
    std::filesystem::copy(std::filesystem::path(QUIRE_SOURCE_DIR) / "tests/fixtures/bart" / file, folder / file);
  }
  const std::string run = "generate --model " + folder.string() + " --max-tokens 6 --ignore-eos --summary none ";
  EXPECT_TRUE(has(quire_command(run + "--prompt abc"), "tokenizer.json: want a tokenizer"));
  nlohmann::json vocab;  // <0> to <159>; the letters are ids 3 and up
  for (int id = 0; id < 160; ++id) {
    vocab[id >= 3 && id < 29 ? std::string(1, static_cast<char>('a' + id - 3)) : "<" + std::to_string(id) + ">"] = id;
  }
  std::ofstream(folder / "tokenizer.json")
      << nlohmann::json({{"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", nlohmann::json::array()}}},
                         {"decoder", {{"type", "Fuse"}}}});
  const Outcome lone = quire_command(run + "--prompt sphinxofblackquartz");
  EXPECT_EQ(lone.status, 0) << lone.text;
  std::ofstream(folder / "batch.jsonl") << "{\"prompt\": \"a\"}\n{\"prompt\": \"sphinxofblackquartz\"}\n";
  const Outcome batch = quire_command(run + "--batch " + (folder / "batch.jsonl").string());
  EXPECT_TRUE(has(batch, R"("prompt_tokens":19)") && has(batch, R"("tokens":6,"finish_reason":"length")"))
      << batch.text;
  const std::string text = lone.text.substr(0, lone.text.find('\n'));
  EXPECT_TRUE(!text.empty() && has(batch, "\"text\":\"" + text + "\"")) << lone.text << batch.text;
  EXPECT_TRUE(has(quire_command(run + "--prompt abc --ngram --tree chain:2 --backend TRITON_ATTN"),
                  "want a decoder-only model, got BartForConditionalGeneration"));
  EXPECT_TRUE(has(quire_command(run + "--prompt " + std::string(200, 'a')), "prompt: want at most 128 tokens"));
  std::filesystem::remove_all(folder);
}

// Between loading and the first token a file that is cut short or wrong must show.
TEST(Generate, BrokenCheckpointsNameTheFileBeforeAnyToken) {
  namespace fs = std::filesystem;
  const fs::path source = fs::path(QUIRE_SOURCE_DIR) / "models/shakespeare-draft";
  const fs::path folder = fs::temp_directory_path() / "quire_generate_broken";
  const auto message = [&](const std::string& file, const std::string& content) {
    fs::remove_all(folder);
    fs::create_directory(folder);
    for (const char* one : {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}) {
      if (one != file) fs::create_symlink(source / one, folder / one);
    }
    if (!content.empty()) std::ofstream(folder / file) << content;
    const Outcome outcome = quire_command("generate --model " + folder.string() + " --prompt A --summary none");
    EXPECT_EQ(outcome.status, 1) << file << ": " << outcome.text;
    EXPECT_TRUE(has(outcome, (folder / file).string())) << outcome.text;
    EXPECT_EQ(std::count(outcome.text.begin(), outcome.text.end(), '\n'), 1) << outcome.text;
    return outcome.text;
  };
  const auto read = [&](const std::string& file) {
    std::ifstream stream(source / file, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(stream), {});
  };
  const std::string config = read("config.json");
  const auto changed = [&config](const std::string& from, const std::string& to) {
    std::string text = config;
    return text.replace(text.find(from), from.size(), to);
  };
  message("config.json", "");
  message("config.json", config.substr(0, 100));
  EXPECT_NE(message("config.json", changed("LlamaForCausalLM", "MambaForCausalLM")).find("architectures"),
            std::string::npos);
  EXPECT_NE(message("config.json", changed("\"attention_bias\"", "\"qk_layernorm\"")).find("qk_layernorm"),
            std::string::npos);
  message("generation_config.json", R"({"repetition_penalty": 1.2})");
  message("tokenizer.json", R"({"model": {"type": "Unigram"}})");
  message("tokenizer.json", read("tokenizer.json").substr(0, 4000));
  const std::string weights = read("model.safetensors");
  message("model.safetensors", "");
  message("model.safetensors", weights.substr(0, weights.size() - 1));
  message("model.safetensors", weights.substr(0, 5));
  fs::remove_all(folder);
}

TEST(Generate, ErrorsNameWhatIsWrong) {
  EXPECT_TRUE(has(quire_command("generate --model /nowhere --prompt A"), "/nowhere/config.json"));
  EXPECT_TRUE(has(quire_command("generate " + model("llama")), "want one of --prompt"));
  EXPECT_TRUE(has(quire_command("generate " + model("llama") + " --prompt A --tree grow"), "want --draft or --ngram"));
  EXPECT_TRUE(
      has(quire_command("generate " + model("llama") + " --prompt A --kv-cache-dtype int3"), "int8_per_token_head"));
  EXPECT_TRUE(has(quire_command("generate " + model("diff") + " --backend XFORMERS --prompt A"), "XFORMERS"));
  EXPECT_TRUE(has(quire_command("bench --engine --trace t.csv"), "want the folder of a checkpoint"));
}

TEST(Generate, ParsesTreePolicies) {
  const Result<TreePolicy> grown = parse_tree_policy("grow:nodes=7,depth=2,beam=3,branch=5,min=0.25");
  ASSERT_TRUE(grown.ok());
  EXPECT_EQ(grown->max_nodes, 7);
  EXPECT_EQ(grown->max_depth, 2);
  EXPECT_EQ(grown->beam, 3);
  EXPECT_EQ(grown->branch, 5);
  EXPECT_EQ(grown->min_probability, 0.25f);
  EXPECT_EQ(parse_tree_policy("chain:3")->choices->size(), 4);
  for (const char* wrong : {"", "chain", "chain:0", "chain:x", "grow:nodes", "grow:size=3", "tree", "[(0, 0)]"}) {
    EXPECT_FALSE(parse_tree_policy(wrong).ok()) << wrong;
  }
}

TEST(EngineBench, ServesATrace) {
  const std::string trace = std::string(QUIRE_TEST_DATA_DIR) + "/traces/azure_llm_2023_conv_200.csv";
  const Outcome served = quire_command("bench --engine " + model("llama") +
                                       " --time-scale 0 --length-scale 0.02 --requests 5 --trace " + trace);
  EXPECT_EQ(served.status, 0) << served.text;
  EXPECT_TRUE(has(served, "5 requests in") && has(served, "first token") && has(served, "p99")) << served.text;
}

TEST(EngineBench, PercentilesAreValuesThatOccurred) {
  const std::vector<double> values = {4.0, 1.0, 3.0, 2.0};
  EXPECT_EQ(percentile(values, 0.5), 2.0);
  EXPECT_EQ(percentile(values, 0.51), 3.0);
  EXPECT_EQ(percentile(values, 1.0), 4.0);
  EXPECT_EQ(percentile({}, 0.5), 0.0);
}

}  // namespace
}  // namespace quire::cli
