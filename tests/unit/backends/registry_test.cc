// The registry and the selector: names, users' own backends, threads, and what the selector says of its choice.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "unit/backends/layer_run.h"

namespace quire::test {
namespace {

// A user's backend: TRITON_ATTN under another name, for one head size.
class OwnBackend final : public AttentionBackend {
 public:
  enum class Choice : std::uint8_t { kAutomatic, kByName };
  OwnBackend(std::string name, std::int32_t head_size, Choice choice = Choice::kAutomatic)
      : name_(std::move(name)), head_size_(head_size), choice_(choice) {}
  bool is_automatic() const override { return choice_ == Choice::kAutomatic; }
  std::string_view name() const override { return name_; }
  std::span<const DType> supported_dtypes() const override { return base().supported_dtypes(); }
  std::span<const KVCacheDType> supported_kv_cache_dtypes() const override { return all_kv_cache_dtypes(); }
  bool supports_head_size(std::int32_t head_size, std::int32_t) const override { return head_size == head_size_; }
  bool supports_block_size(std::int32_t block_size) const override { return block_size == 8; }
  std::int32_t block_size_multiple() const override { return 8; }
  bool supports_attn_type(AttentionType type) const override { return type == AttentionType::kDecoder; }
  bool supports_sink() const override { return false; }
  bool supports_mm_prefix() const override { return false; }
  bool supports_alibi_sqrt() const override { return false; }
  bool supports_non_causal() const override { return false; }
  bool supports_output_quant() const override { return false; }
  bool supports_batch_invariance() const override { return false; }
  bool supports_kv_connector() const override { return false; }
  bool supports_backplane(Backplane backplane) const override { return backplane == Backplane::kReference; }
  bool supports_compute_capability(ComputeCapability) const override { return false; }
  CudagraphSupport cudagraph_support() const override { return CudagraphSupport::kNever; }
  KVCacheFormat kv_cache_format() const override { return KVCacheFormat::kBlockFirst; }
  Result<std::unique_ptr<AttentionImpl>> make_impl(const ImplConfig& config) const override {
    return base().make_impl(config);
  }
  Result<std::unique_ptr<AttentionMetadataBuilder>> make_builder(const BuilderConfig& config) const override {
    return base().make_builder(config);
  }

 private:
  static const AttentionBackend& base() { return **find_backend("TRITON_ATTN"); }
  std::string name_;
  std::int32_t head_size_;
  Choice choice_;
};

TEST(Registry, TheFiveInOrderAndTheAlias) {
  const std::vector<std::string_view> want = {"TREE_ATTN", "XFORMERS", "TRITON_ATTN", "TRITON_ATTN_DIFFKV",
                                              "DIFFERENTIAL_FLASH_ATTN"};
  const auto all = registered_backends();
  ASSERT_GE(all.size(), want.size());
  for (std::size_t i = 0; i < want.size(); ++i) EXPECT_EQ(all[i]->name(), want[i]);
  EXPECT_EQ(*find_backend("XFORMERS_VLLM_V1"), *find_backend("XFORMERS"));
}

TEST(Registry, UnknownNamesListTheValidOnes) {
  const auto found = find_backend("FLASH_ATTN");
  ASSERT_FALSE(found.ok());
  EXPECT_EQ(found.status().code(), StatusCode::kNotFound);
  EXPECT_NE(found.status().message().find("TREE_ATTN, XFORMERS, TRITON_ATTN"), std::string::npos);
  EXPECT_NE(found.status().message().find("'FLASH_ATTN'"), std::string::npos);
}

TEST(Registry, BadBackendsAreRefused) {
  EXPECT_FALSE(register_backend(nullptr).ok());
  EXPECT_FALSE(register_backend(std::make_unique<OwnBackend>("", 32)).ok());
  EXPECT_FALSE(register_backend(std::make_unique<OwnBackend>("XFORMERS_VLLM_V1", 32)).ok());
}

TEST(Registry, UsersAddAndReplaceTheirOwn) {
  ASSERT_TRUE(register_backend(std::make_unique<OwnBackend>("OWN", 4)).ok());
  const AttentionBackend* first = *find_backend("OWN");
  ASSERT_TRUE(register_backend(std::make_unique<OwnBackend>("OWN", 5)).ok());
  const AttentionBackend* second = *find_backend("OWN");
  EXPECT_NE(first, second);
  EXPECT_TRUE(first->supports_head_size(4, 4));  // still alive
  EXPECT_EQ(registered_backends().size(), 6u);
  AttentionConfig config;
  config.head_size = 5;
  config.block_size = 8;
  config.backplane = Backplane::kReference;
  const auto picked = select_backend(config);
  ASSERT_TRUE(picked.ok()) << picked.status().to_string();
  EXPECT_EQ(picked->backend, second);
  ASSERT_TRUE(register_backend(std::make_unique<OwnBackend>("OWN", 5, OwnBackend::Choice::kByName)).ok());
  const auto refused = select_backend(config);
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.status().message().find("OWN: is taken by name only"), std::string::npos);
  EXPECT_TRUE(select_backend(config, "OWN").ok());
  config.use_output_quant = config.use_batch_invariant = config.use_kv_connector = true;
  EXPECT_EQ(second->validate_configuration(config),
            (std::vector<std::string>{"batch invariance not supported", "KV connector not supported",
                                      "output quantisation not supported"}));
  LayerSetup setup{.backend = "OWN"};
  EXPECT_TRUE(LayerRun(setup).forward().ok());
}

TEST(Registry, ThreadsMayAddAndFindAtOnce) {
  std::atomic<int> failures{0};
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&failures] {
      for (int i = 0; i < 50; ++i) {
        if (!register_backend(std::make_unique<OwnBackend>("OWN", 6)).ok()) ++failures;
        if (!find_backend("TRITON_ATTN").ok()) ++failures;
        for (const AttentionBackend* each : registered_backends()) failures += each->name().empty() ? 1 : 0;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failures, 0);
}

TEST(Selector, PrefersTheGeneralBackendAndSaysWhyNotOthers) {
  AttentionConfig config;
  config.backplane = Backplane::kReference;
  config.has_sink = true;
  const auto picked = select_backend(config);
  ASSERT_TRUE(picked.ok());
  EXPECT_EQ(picked->backend->name(), "TRITON_ATTN");
  ASSERT_EQ(picked->verdicts.size(), registered_backends().size());
  EXPECT_EQ(picked->verdicts[1].reasons, std::vector<std::string>{"attention sinks not supported"});
  config.head_size = 192;
  config.head_size_v = 128;
  EXPECT_EQ(select_backend(config)->backend->name(), "TRITON_ATTN_DIFFKV");
}

TEST(Selector, ANameIsTakenOrRefusedNeverReplaced) {
  AttentionConfig config;
  config.backplane = Backplane::kReference;
  EXPECT_EQ(select_backend(config, "DIFFERENTIAL_FLASH_ATTN")->backend->name(), "DIFFERENTIAL_FLASH_ATTN");
  config.has_sink = config.use_mm_prefix = true;
  const auto refused = select_backend(config, "XFORMERS");
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.status().message().find("XFORMERS: partial multimodal token full attention not supported; "
                                            "attention sinks not supported"),
            std::string::npos)
      << refused.status().to_string();
  EXPECT_EQ(select_backend(config, "FLASH_ATTN").status().code(), StatusCode::kNotFound);
}

TEST(Selector, WithoutAnyBackendAllReasonsAreGiven) {
  AttentionConfig config;
  config.use_mla = true;
  const auto none = select_backend(config);
  ASSERT_FALSE(none.ok());
  for (const AttentionBackend* each : registered_backends()) {
    EXPECT_NE(none.status().message().find(std::string(each->name()) + ": "), std::string::npos);
  }
}

}  // namespace
}  // namespace quire::test
