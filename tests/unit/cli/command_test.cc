// Tests of the command as a user meets it: exit statuses, messages and formats.
#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "quire/cuda.h"
#include "quire/runtime.h"

namespace {

struct Outcome {
  int status = -1;
  std::string text;  // standard output and error
};

// Runs a line in a shell, as users do.
Outcome run_line(const std::string& line) {
  Outcome out;
  FILE* pipe = popen((line + " 2>&1").c_str(), "r");
  if (pipe == nullptr) return out;
  std::array<char, 4096> buffer{};
  for (std::size_t got = 0; (got = fread(buffer.data(), 1, buffer.size(), pipe)) > 0;) {
    out.text.append(buffer.data(), got);
  }
  out.status = WEXITSTATUS(pclose(pipe));
  return out;
}

Outcome quire_command(const std::string& arguments) { return run_line(std::string(QUIRE_COMMAND) + " " + arguments); }

bool has(const Outcome& outcome, const std::string& part) { return outcome.text.find(part) != std::string::npos; }

std::string golden_case(const std::string& name) { return std::string(QUIRE_CASES_DIR) + "/" + name + ".safetensors"; }

constexpr const char* kBackends[] = {"TREE_ATTN", "XFORMERS", "TRITON_ATTN", "TRITON_ATTN_DIFFKV",
                                     "DIFFERENTIAL_FLASH_ATTN"};
constexpr const char* kSmallBench =
    " --num-heads 4 --num-kv-heads 2 --head-size 32 --seconds 0.001 --repeats 1 --no-ceilings";

TEST(Command, VersionAndHelp) {
  EXPECT_TRUE(has(quire_command("--version"), "quire 0."));
  EXPECT_EQ(quire_command("--help").status, 0);
  for (const char* name : {"backends", "explain", "kernels", "replay", "bench", "collect-env"}) {
    const Outcome help = quire_command(std::string(name) + " --help");
    EXPECT_EQ(help.status, 0) << name;
    EXPECT_TRUE(has(help, "--format")) << name;
  }
}

TEST(Command, WrongUsageIsStatus2) {
  EXPECT_EQ(quire_command("").status, 2);
  EXPECT_EQ(quire_command("nonsense").status, 2);
  EXPECT_EQ(quire_command("replay").status, 2);
  EXPECT_EQ(quire_command("bench q16 --num-heads many").status, 2);
}

TEST(Command, WrongNamesListTheValidOnes) {
  EXPECT_TRUE(has(quire_command("backends --format xml"), "want text, markdown"));
  EXPECT_TRUE(has(quire_command("bench q16 --backend FLASH"), "TRITON_ATTN_DIFFKV"));
  EXPECT_TRUE(has(quire_command("bench q16 --isa sse2"), "avx2"));
  EXPECT_TRUE(has(quire_command("explain --dtype int3"), "bfloat16"));
  EXPECT_TRUE(has(quire_command("bench --set nonsense"), "standard_decode"));
  EXPECT_EQ(quire_command("bench q0").status, 1);
  if (!quire::cuda::device_info().ok()) {
    EXPECT_TRUE(has(quire_command("bench q16 --device cuda"), "CUDA"));
    EXPECT_EQ(quire_command("replay " + golden_case("triton_mqa_d128") + " --device cuda").status, 1);
  }
  EXPECT_TRUE(has(quire_command("bench q16 --device tpu"), "want one of reference, cpu, cuda"));
}

TEST(Backends, EveryFormatNamesEveryBackend) {
  for (const char* format : {"text", "markdown", "csv", "json"}) {
    const Outcome out = quire_command(std::string("backends --format ") + format);
    EXPECT_EQ(out.status, 0);
    for (const char* name : kBackends) EXPECT_TRUE(has(out, name)) << format;
  }
  EXPECT_EQ(nlohmann::json::parse(quire_command("backends --format json").text).size(), std::size(kBackends));
}

TEST(Explain, GivesReasonsAndAnExitStatus) {
  const Outcome good = quire_command("explain --head-size 128");
  EXPECT_EQ(good.status, 0);
  EXPECT_TRUE(has(good, "selected: TRITON_ATTN"));
  const Outcome named = quire_command("explain --sinks --backend XFORMERS");
  EXPECT_EQ(named.status, 1);
  EXPECT_TRUE(has(named, "attention sinks not supported"));
  const Outcome json = quire_command("explain --mla --format json");
  EXPECT_EQ(json.status, 1);
  EXPECT_TRUE(nlohmann::json::parse(json.text)["selected"].is_null());
  EXPECT_TRUE(has(quire_command("explain --compute-capability nine"), "MAJOR.MINOR"));
}

TEST(Kernels, NamesTheInstructionSets) {
  const Outcome out = quire_command("kernels");
  EXPECT_EQ(out.status, 0);
  EXPECT_TRUE(has(out, "scalar"));
  EXPECT_FALSE(nlohmann::json::parse(quire_command("kernels --format json").text).empty());
}

TEST(Replay, CountsInItsLastLine) {
  const Outcome out =
      quire_command("replay --device reference " + golden_case("triton_sinks") + " " + golden_case("tree_chain"));
  EXPECT_EQ(out.status, 0) << out.text;
  EXPECT_TRUE(out.text.ends_with("2 passed, 0 failed\n")) << out.text;
  const auto json = nlohmann::json::parse(
      quire_command("replay --device reference --format json " + golden_case("triton_sinks")).text);
  EXPECT_EQ(json[0]["passed"], true);
  EXPECT_EQ(json[0]["runtime"], "reference");
}

TEST(Replay, FailsOnFilesThatAreNotCases) {
  const Outcome missing = quire_command("replay /nowhere/case.safetensors");
  EXPECT_EQ(missing.status, 1);
  EXPECT_TRUE(missing.text.ends_with("0 passed, 1 failed\n")) << missing.text;
  EXPECT_EQ(quire_command("replay " + testing::TempDir() + "/no_such_folder/").status, 1);
}

TEST(Replay, RunsOnTheForcedInstructionSet) {
  const auto runtime_of = [](const std::string& environment, const std::string& arguments) {
    const Outcome out = run_line(environment + " " + QUIRE_COMMAND + " replay --format json " + arguments + " " +
                                 golden_case("triton_sinks"));
    const auto rows = nlohmann::json::parse(out.text, nullptr, false);
    return rows.is_array() ? rows[0]["runtime"].get<std::string>() : out.text;
  };
  for (const quire::Isa isa : quire::available_isas()) {
    const std::string name(quire::isa_name(isa));
    EXPECT_EQ(runtime_of("QUIRE_ISA=" + name, ""), "cpu/" + name);
    EXPECT_EQ(runtime_of("QUIRE_ISA=scalar", "--isa " + name), "cpu/" + name);
  }
  EXPECT_NE(runtime_of("QUIRE_ISA=sse9", "").find("want one of scalar"), std::string::npos);
}

TEST(Bench, MeasuresTheMachineAndTheRoofline) {
  const Outcome out = quire_command(
      "bench q64 --num-heads 4 --num-kv-heads 2 --head-size 32 --seconds 0.001 --repeats 1 --format json");
  const auto rows = nlohmann::json::parse(out.text);
  EXPECT_GT(rows[0]["peak_f32_flops"].get<double>(), 1e8);
  EXPECT_GT(rows[0]["dram_bytes_per_s"].get<double>(), 1e8);
  EXPECT_GT(rows[0]["roofline_fraction"].get<double>(), 0.0);
}

TEST(Bench, RowsCanBeMeasuredAgain) {
  const std::string options = std::string("bench 2q1s40_q16 --refcheck --format json") + kSmallBench;
  const auto rows = nlohmann::json::parse(quire_command(options).text);
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0]["error"], "");
  EXPECT_LE(rows[0]["nmse"].get<double>(), rows[0]["nmse_limit"].get<double>());
  const std::string command = rows[0]["command"];
  ASSERT_TRUE(command.starts_with("quire ")) << command;
  const auto again = nlohmann::json::parse(
      quire_command(command.substr(6) + " --seconds 0.001 --repeats 1 --no-ceilings --format json").text);
  EXPECT_EQ(again[0]["flops"], rows[0]["flops"]);
  EXPECT_EQ(again[0]["bytes"], rows[0]["bytes"]);
  EXPECT_EQ(again[0]["command"], command);
}

TEST(Bench, EveryBackendAgreesWithTheReference) {
  const Outcome out = quire_command(
      std::string("bench 3q1s70_2q9s33 --refcheck --format csv --kv-cache-dtype auto,fp8_e4m3,int8_per_token_head "
                  "--backend TREE_ATTN,XFORMERS,TRITON_ATTN,TRITON_ATTN_DIFFKV,DIFFERENTIAL_FLASH_ATTN") +
      kSmallBench);
  EXPECT_EQ(out.status, 0) << out.text;
}

TEST(Bench, DrawsFromTracesAndPlots) {
  const std::string plot = (std::filesystem::path(testing::TempDir()) / "quire_bench.svg").string();
  const Outcome out = quire_command("bench --trace " + std::string(QUIRE_TEST_DATA_DIR) +
                                    "/traces/azure_llm_2023_conv_200.csv --decodes 3 --prefills 1 --max-seq-len 100 " +
                                    "--format md --svg " + plot + kSmallBench);
  EXPECT_EQ(out.status, 0) << out.text;
  EXPECT_TRUE(has(out, "| batch |"));
  std::ifstream in(plot);
  std::stringstream svg;
  svg << in.rdbuf();
  EXPECT_TRUE(svg.str().starts_with("<svg "));
  std::filesystem::remove(plot);
}

TEST(Bench, ABatchThatDoesNotFitIsAnErrorOfItsRow) {
  const Outcome out = quire_command(std::string("bench 65536q1s16384k") + kSmallBench);
  EXPECT_EQ(out.status, 1);
  EXPECT_TRUE(has(out, "memory")) << out.text;
}

TEST(CollectEnv, NamesVersionAndInstructionSets) {
  const Outcome out = quire_command("collect-env");
  EXPECT_EQ(out.status, 0);
  EXPECT_TRUE(has(out, "instruction sets"));
  EXPECT_TRUE(has(out, "scalar"));
}

}  // namespace
