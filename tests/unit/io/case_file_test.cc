// Tests of the attention case reader: the golden cases, and files that are not cases.
#include "io/case_file.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <functional>

namespace quire {
namespace {

using Metadata = std::map<std::string, std::string>;

TEST(CaseFile, ReadsEveryGoldenCase) {
  int cases = 0;
  for (const auto& entry : std::filesystem::directory_iterator(QUIRE_CASES_DIR)) {
    if (entry.path().extension() != ".safetensors") continue;
    ++cases;
    const auto read = read_attention_case(entry.path().string());
    ASSERT_TRUE(read.ok()) << read.status().message();
    EXPECT_EQ(read->name, entry.path().stem().string());
    EXPECT_GT(read->config.num_heads, 0);
    EXPECT_GT(read->atol, 0.0);
  }
  EXPECT_EQ(cases, 63);
}

TEST(CaseFile, ConfigValuesArrive) {
  const auto tree = read_attention_case(std::string(QUIRE_CASES_DIR) + "/tree_draft_level1.safetensors");
  ASSERT_TRUE(tree.ok()) << tree.status().message();
  EXPECT_EQ(tree->backend, "TREE_ATTN");
  EXPECT_EQ(tree->config.draft_query_len, 3);
  ASSERT_EQ(tree->config.tree_choices.size(), 7u);
  EXPECT_EQ(tree->config.tree_choices[6], (TreePath{0, 0, 0}));
  EXPECT_FALSE(tree->config.sliding_window.has_value());
  const auto shared = read_attention_case(std::string(QUIRE_CASES_DIR) + "/differential_shared_kv.safetensors");
  ASSERT_TRUE(shared.ok()) << shared.status().message();
  EXPECT_TRUE(shared->config.kv_sharing);
  EXPECT_TRUE(shared->key.empty());
  EXPECT_NEAR(*shared->config.lambda_init, 0.5560582, 1e-6);
}

// A golden case that `change` has damaged, read again.
Status read_changed(const std::function<void(std::vector<NamedTensor>&, Metadata&)>& change) {
  auto file = SafetensorsFile::open(std::string(QUIRE_CASES_DIR) + "/triton_sinks.safetensors");
  if (!file.ok()) return file.status();
  Metadata metadata = file->metadata();
  std::vector<NamedTensor> tensors;
  for (const std::string& name : file->names()) tensors.push_back({name, *file->tensor(name)});
  change(tensors, metadata);
  const auto bytes = serialize_safetensors(tensors, metadata);
  if (!bytes.ok()) return bytes.status();
  auto again = SafetensorsFile::from_bytes(*bytes, "changed.safetensors");
  if (!again.ok()) return again.status();
  return parse_attention_case(std::move(again).value()).status();
}

void expect_complaint(const Status& status, const std::string& part) {
  EXPECT_EQ(status.code(), StatusCode::kDataLoss) << status.to_string();
  EXPECT_NE(status.message().find("changed.safetensors"), std::string::npos) << status.message();
  EXPECT_NE(status.message().find(part), std::string::npos) << status.message() << " lacks: " << part;
}

void replace(std::string& text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  ASSERT_NE(at, std::string::npos) << from;
  text.replace(at, from.size(), to);
}

TEST(CaseFile, AnUnchangedCopyIsFine) {
  EXPECT_TRUE(read_changed([](auto&, Metadata&) {}).ok());
}

TEST(CaseFile, MetadataErrorsNameTheKey) {
  for (const char* key : {"format", "name", "backend", "oracle", "config", "tolerance"}) {
    expect_complaint(read_changed([key](auto&, Metadata& m) { m.erase(key); }),
                     "__metadata__." + std::string(key) + ": missing");
  }
  expect_complaint(read_changed([](auto&, Metadata& m) { m["format"] = "attention-case/2"; }), "attention-case/2");
  expect_complaint(read_changed([](auto&, Metadata& m) { m["config"] = "[1"; }), "__metadata__.config");
  expect_complaint(read_changed([](auto&, Metadata& m) { m["config"] = std::string(100000, '['); }), "config");
  expect_complaint(read_changed([](auto&, Metadata& m) { m["config"] = "{\"a\":[[[[1]]]]}"; }), "at most 3 levels");
  expect_complaint(read_changed([](auto&, Metadata& m) { m["tolerance"] = "{\"atol\":-1,\"rtol\":0}"; }), "tolerance");
  expect_complaint(read_changed([](auto&, Metadata& m) { m["tolerance"] = "{\"atol\":0}"; }),
                   "tolerance.rtol: missing");
}

TEST(CaseFile, ConfigErrorsNameTheKey) {
  const auto with = [](const std::string& from, const std::string& to) {
    return read_changed([&](auto&, Metadata& m) { replace(m["config"], from, to); });
  };
  expect_complaint(with("\"num_heads\"", "\"num_haeds\""), "config.num_heads: missing");
  expect_complaint(with("\"num_heads\": 4", "\"num_heads\": -4"), "config.num_heads: want an integer");
  expect_complaint(with("\"num_heads\": 4", "\"num_heads\": 4.5"), "config.num_heads: want an integer");
  expect_complaint(with("\"num_heads\": 4", "\"num_heads\": 99999999999"), "config.num_heads: want an integer");
  expect_complaint(with("\"scale\": 0.125", "\"scale\": \"x\""), "config.scale: want a finite number");
  expect_complaint(with("\"scale\": 0.125", "\"scale\": 0.125, \"novel\": 1"), "config.novel: unknown key");
  expect_complaint(with("\"num_heads\": 4", "\"num_heads\": 5"), "query.shape");
  expect_complaint(with("\"num_actual_tokens\": 57", "\"num_actual_tokens\": 58"), "config.num_actual_tokens");
}

TEST(CaseFile, TensorErrorsNameTheTensor) {
  const auto find = [](std::vector<NamedTensor>& tensors, const std::string& name) {
    for (auto at = tensors.begin();; ++at) {
      if (at->name == name) return at;
    }
  };
  for (const char* name :
       {"query", "key", "value", "kv_cache", "block_table", "query_start_loc", "seq_lens", "slot_mapping", "output"}) {
    expect_complaint(read_changed([&](auto& t, Metadata&) { t.erase(find(t, name)); }),
                     std::string(name) + ": missing");
  }
  expect_complaint(read_changed([&](auto& t, Metadata&) { find(t, "sinks")->name = "sings"; }),
                   "sings: unknown tensor");
  expect_complaint(read_changed([&](auto& t, Metadata&) {
                     find(t, "query_start_loc")->tensor = slice(find(t, "query_start_loc")->tensor, 0, 0, 3);
                   }),
                   "query_start_loc.shape");
  expect_complaint(read_changed([&](auto& t, Metadata&) { find(t, "seq_lens")->tensor.dtype = DType::kFloat32; }),
                   "seq_lens.dtype");
}

}  // namespace
}  // namespace quire
