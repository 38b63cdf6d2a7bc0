// The engine's promises: the tokens of transformers, and the same bits whatever a request is batched or chunked with.
#include <algorithm>
#include <cstdlib>

#include "unit/engine/engine_support.h"
#include "unit/models/parity.h"

namespace quire::engine_test {
namespace {

constexpr std::int32_t kFixtureVocab = 160;
constexpr std::int32_t kShippedVocab = 1024;

EngineOptions fixture_options(const std::string& backend = "") {
  return {.model = fixture("llama"), .backend = backend, .dtype = DType::kFloat32};
}

TEST(Engine, GreedyTokensAreThoseOfTransformers) {
  const SafetensorsFile expected = parity::open_file(fixture("llama") + "/expected.safetensors");
  for (const std::string backend : {"XFORMERS", "TRITON_ATTN", "TREE_ATTN"}) {
    const std::unique_ptr<Engine> engine = make_engine(fixture_options(backend));
    ASSERT_NE(engine, nullptr);
    EXPECT_EQ(engine->info().backend, backend);
    std::vector<GenerateRequest> requests;
    for (const std::int32_t length : parity::kLengths) {
      requests.push_back(greedy_request(parity::ids_of(expected, "input_ids_" + std::to_string(length)), 12));
    }
    const std::vector<Outcome> outcomes = run_all(*engine, std::move(requests));
    for (std::size_t i = 0; i < outcomes.size(); ++i) {
      EXPECT_EQ(outcomes[i].tokens, parity::ids_of(expected, "gen_ids_" + std::to_string(parity::kLengths[i])));
      EXPECT_EQ(outcomes[i].finish, FinishReason::kLength);
    }
  }
}

// One way to serve requests; all must give the bits of the first.
struct Serving {
  std::string name;
  std::int32_t batch = 1;
  std::int32_t chunk = 0;
  PrefixCaching caching = PrefixCaching::kOff;
  std::int64_t num_blocks = 0;
  DraftKind draft = DraftKind::kNone;
};

std::vector<Outcome> serve(EngineOptions options, const Serving& how, std::int32_t vocab) {
  options.batch_invariance = BatchInvariance::kOn;
  options.max_prefill_chunk = how.chunk;
  options.prefix_caching = how.caching;
  options.num_blocks = how.num_blocks;
  options.draft = how.draft;
  if (how.draft == DraftKind::kModel) options.draft_model = shipped("draft");
  const std::unique_ptr<Engine> engine = make_engine(std::move(options));
  std::vector<Outcome> outcomes;
  std::vector<GenerateRequest> requests;
  for (std::uint32_t i = 0; i < 16; ++i) {
    // Half of the prompts share their first 40 tokens.
    std::vector<std::int32_t> prompt = some_prompt(i % 2 == 0 ? 40 : 1, i % 2 == 0 ? 99 : i, vocab);
    const std::vector<std::int32_t> own = some_prompt(static_cast<std::int32_t>(3 + 5 * i), 7 * i, vocab);
    prompt.insert(prompt.end(), own.begin(), own.end());
    GenerateRequest request = greedy_request(std::move(prompt), 10);
    request.sampling.temperature = i % 4 == 0 ? 0.8f : 0.0f;
    request.sampling.seed = i;
    if (how.draft != DraftKind::kNone) request.tree = TreePolicy{.max_depth = 3 - static_cast<std::int32_t>(i % 2)};
    requests.push_back(std::move(request));
    if (requests.size() < static_cast<std::size_t>(how.batch)) continue;
    for (Outcome& outcome : run_all(*engine, std::move(requests))) outcomes.push_back(std::move(outcome));
    requests.clear();
  }
  const EngineStats stats = engine->stats();
  EXPECT_EQ(stats.prefix_hit_tokens > 0, how.caching == PrefixCaching::kOn) << how.name;
  EXPECT_EQ(stats.preemptions > 0, how.num_blocks > 0) << how.name;
  return outcomes;
}

void expect_same_bits(const EngineOptions& options, std::int32_t vocab) {
  const Serving alone{.name = "alone"};
  const std::vector<Outcome> want = serve(options, alone, vocab);
  const Serving others[] = {
      {.name = "batch of 16", .batch = 16},
      {.name = "chunks of 5", .chunk = 5},
      {.name = "batch of 16 in chunks of 7", .batch = 16, .chunk = 7},
      {.name = "prefix caching", .caching = PrefixCaching::kOn},
      {.name = "batch of 4, chunks of 9, caching", .batch = 4, .chunk = 9, .caching = PrefixCaching::kOn},
      {.name = "preemption", .batch = 16, .num_blocks = 40}};
  for (const Serving& how : others) {
    const std::vector<Outcome> got = serve(options, how, vocab);
    ASSERT_EQ(got.size(), want.size());
    for (std::size_t i = 0; i < want.size(); ++i) {
      EXPECT_EQ(got[i].tokens, want[i].tokens) << how.name << ", request " << i;
      EXPECT_EQ(got[i].logits, want[i].logits) << how.name << ", request " << i;
    }
  }
}

TEST(Engine, BatchInvariantLogitsHaveTheSameBits) { expect_same_bits(fixture_options("TRITON_ATTN"), kFixtureVocab); }

TEST(Engine, BatchInvariantLogitsHaveTheSameBitsInBfloat16) {
  expect_same_bits({.model = shipped("llama"), .max_model_len = 256}, kShippedVocab);
}

// Drafts, batches, chunks and the prefix cache together: a tree may look beyond a request's last token, so its logits
// are compared where the other has some.
TEST(Engine, BatchInvarianceHoldsWithTrees) {
  const EngineOptions options{.model = shipped("llama"), .backend = "TREE_ATTN", .max_model_len = 256};
  const std::vector<Outcome> want = serve(options, {.name = "alone"}, kShippedVocab);
  const Serving others[] = {
      {.name = "trees", .draft = DraftKind::kModel},
      {.name = "trees in a batch of 16, chunks of 7", .batch = 16, .chunk = 7, .draft = DraftKind::kModel},
      {.name = "trees in batches of 4, caching", .batch = 4, .caching = PrefixCaching::kOn, .draft = DraftKind::kModel},
      {.name = "n-grams in batches of 4, caching",
       .batch = 4,
       .caching = PrefixCaching::kOn,
       .draft = DraftKind::kNgram}};
  for (const Serving& how : others) {
    const std::vector<Outcome> got = serve(options, how, kShippedVocab);
    ASSERT_EQ(got.size(), want.size());
    for (std::size_t i = 0; i < want.size(); ++i) {
      EXPECT_EQ(got[i].tokens, want[i].tokens) << how.name << ", request " << i;
      for (const auto& [position, logits] : want[i].logits) {
        const auto found = got[i].logits.find(position);
        EXPECT_TRUE(found != got[i].logits.end() && found->second == logits) << how.name << ", request " << i;
      }
    }
  }
}

TEST(Engine, BackendsGiveTheSameText) {
  std::vector<Outcome> want;
  for (const std::string backend : {"TRITON_ATTN", "XFORMERS", "TREE_ATTN"}) {
    const std::unique_ptr<Engine> engine = make_engine({.model = shipped("llama"), .backend = backend});
    std::vector<GenerateRequest> requests;
    for (std::uint32_t i = 0; i < 4; ++i) requests.push_back(greedy_request(some_prompt(20, i, kShippedVocab), 32));
    const std::vector<Outcome> got = run_all(*engine, std::move(requests));
    for (std::size_t i = 0; i < want.size(); ++i) EXPECT_EQ(got[i].tokens, want[i].tokens) << backend;
    if (want.empty()) want = got;
  }
}

TEST(Engine, LayoutsGiveTheSameBits) {
  std::vector<Outcome> want;
  for (const char* layout : {"NHD", "HND", ""}) {  // empty: as the engine decides
    setenv("QUIRE_KV_CACHE_LAYOUT", layout, 1);
    const std::unique_ptr<Engine> engine = make_engine({.model = shipped("llama")});
    std::vector<GenerateRequest> requests;
    for (std::uint32_t i = 0; i < 4; ++i) requests.push_back(greedy_request(some_prompt(30, i, kShippedVocab), 16));
    const std::vector<Outcome> got = run_all(*engine, std::move(requests));
    for (std::size_t i = 0; i < want.size(); ++i) {
      EXPECT_EQ(got[i].tokens, want[i].tokens) << layout;
      EXPECT_EQ(got[i].logits, want[i].logits) << layout;
    }
    if (want.empty()) want = got;
  }
  setenv("QUIRE_KV_CACHE_LAYOUT", "DHN", 1);
  const Status status = Engine::create({.model = shipped("llama")}).status();
  unsetenv("QUIRE_KV_CACHE_LAYOUT");
  EXPECT_NE(status.message().find("QUIRE_KV_CACHE_LAYOUT: want NHD or HND, got 'DHN'"), std::string::npos)
      << status.message();
}

TEST(Engine, EveryCacheDtypeStaysNearTheFullCache) {
  std::vector<float> want;
  for (const KVCacheDType dtype : all_kv_cache_dtypes()) {
    EngineOptions options = fixture_options();
    options.kv_cache_dtype = dtype;
    const std::unique_ptr<Engine> engine = make_engine(std::move(options));
    ASSERT_NE(engine, nullptr);
    Outcome outcome = run_one(*engine, greedy_request(some_prompt(50, 3, kFixtureVocab), 2));
    ASSERT_EQ(outcome.tokens.size(), 2u) << kv_cache_dtype_name(dtype);
    const std::vector<float>& got = outcome.logits.at(50);
    if (want.empty()) want = got;
    // e5m2 keeps two bits of mantissa, the others at least three.
    EXPECT_LT(parity::relative_error(got, want), dtype == KVCacheDType::kFp8E5M2 ? 0.3f : 0.15f)
        << kv_cache_dtype_name(dtype);
  }
}

TEST(Engine, StopsAtTokensStringsAndLengths) {
  EngineOptions options = fixture_options();
  options.decode = [](std::span<const std::int32_t> tokens) {
    std::string out;
    for (const std::int32_t token : tokens) out += "<" + std::to_string(token) + ">";
    return out;
  };
  const std::unique_ptr<Engine> engine = make_engine(std::move(options));
  const std::vector<std::int32_t> prompt = some_prompt(20, 1, kFixtureVocab);
  const Outcome free = run_one(*engine, greedy_request(prompt, 12));
  ASSERT_EQ(free.tokens.size(), 12u);

  GenerateRequest request = greedy_request(prompt, 12);
  request.sampling.stop_tokens = {free.tokens[5]};
  const auto first = std::find(free.tokens.begin(), free.tokens.end(), free.tokens[5]);
  const Outcome by_token = run_one(*engine, request);
  EXPECT_EQ(by_token.finish, FinishReason::kStopToken);
  EXPECT_EQ(by_token.tokens, std::vector<std::int32_t>(free.tokens.begin(), first));

  request = greedy_request(prompt, 12);
  const std::string stop = std::to_string(free.tokens[3]) + "><" + std::to_string(free.tokens[4]);
  request.sampling.stop_strings = {"never", stop};
  const Outcome by_string = run_one(*engine, request);
  EXPECT_EQ(by_string.finish, FinishReason::kStopString);
  EXPECT_EQ(by_string.text, free.text.substr(0, free.text.find(stop)));
}

TEST(Engine, RefusesBadRequests) {
  EngineOptions options = fixture_options();
  options.num_blocks = 8;
  const std::unique_ptr<Engine> engine = make_engine(std::move(options));
  const auto message = [&](GenerateRequest request) { return engine->add(std::move(request)).status().message(); };
  EXPECT_NE(message(greedy_request({}, 4)).find("prompt: want at least one token"), std::string::npos);
  EXPECT_NE(message(greedy_request({kFixtureVocab}, 4)).find("prompt: want tokens in [0, 160)"), std::string::npos);
  EXPECT_NE(message(greedy_request(some_prompt(300, 1, 160), 4)).find("max_model_len 256"), std::string::npos);
  EXPECT_NE(message(greedy_request(some_prompt(200, 1, 160), 4)).find("the KV cache"), std::string::npos);
  GenerateRequest hot = greedy_request({5}, 4);
  hot.sampling.temperature = -1.0f;
  EXPECT_NE(message(hot).find("temperature"), std::string::npos);
  GenerateRequest tree = greedy_request({5}, 4);
  tree.tree = TreePolicy{};
  EXPECT_NE(message(tree).find("tree: want an engine with a draft"), std::string::npos);
  EXPECT_FALSE(engine->has_work());
}

TEST(Engine, CancelFreesTheRequest) {
  const std::unique_ptr<Engine> engine = make_engine(fixture_options());
  const Result<RequestId> id = engine->add(greedy_request(some_prompt(20, 1, 160), 50));
  ASSERT_TRUE(id.ok());
  ASSERT_TRUE(engine->step().ok());
  EXPECT_TRUE(engine->cancel(*id).ok());
  EXPECT_FALSE(engine->has_work());
  EXPECT_EQ(engine->cancel(*id).code(), StatusCode::kNotFound);
}

}  // namespace
}  // namespace quire::engine_test
