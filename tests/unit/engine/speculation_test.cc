// Speculation changes nothing but the number of steps: the same tokens for greedy and for sampling, and the target's
// distribution.
#include <cmath>

#include "engine/sampler.h"
#include "engine/speculation.h"
#include "engine/tree_growth.h"
#include "unit/engine/engine_support.h"

namespace quire::engine_test {
namespace {

constexpr std::int32_t kVocab = 1024;

EngineOptions plain_options() { return {.model = shipped("llama"), .batch_invariance = BatchInvariance::kOn}; }

EngineOptions draft_options(DraftKind kind) {
  EngineOptions options = plain_options();
  options.draft = kind;
  if (kind == DraftKind::kModel) options.draft_model = shipped("draft");
  return options;
}

TreePolicy choices(const std::string& text) {
  Result<TokenTree> tree = TokenTree::parse(text);
  EXPECT_TRUE(tree.ok()) << tree.status().to_string();
  return {.choices = std::move(tree).value()};
}

std::vector<GenerateRequest> some_requests(const std::vector<std::optional<TreePolicy>>& trees, float temperature) {
  std::vector<GenerateRequest> requests;
  for (std::uint32_t i = 0; i < trees.size(); ++i) {
    GenerateRequest request = greedy_request(some_prompt(static_cast<std::int32_t>(9 + 11 * i), i, kVocab), 40);
    request.sampling.temperature = temperature;
    request.sampling.seed = 17 + i;
    request.tree = trees[i];
    requests.push_back(std::move(request));
  }
  return requests;
}

// Each request has a tree of its own kind.
const std::vector<std::optional<TreePolicy>>& mixed_trees() {
  static const std::vector<std::optional<TreePolicy>> kTrees = {
      choices("[(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0)]"),
      TreePolicy{},
      choices("[(0,), (0, 0), (0, 0, 0), (0, 0, 0, 0)]"),
      std::nullopt,
      TreePolicy{.max_nodes = 7, .max_depth = 3, .beam = 2, .branch = 3, .min_probability = 0.0f},
      choices("[(0,), (2,), (2, 1)]")};
  return kTrees;
}

class Speculation : public testing::TestWithParam<std::tuple<DraftKind, float>> {};

TEST_P(Speculation, GivesTheTokensOfPlainDecoding) {
  const auto [kind, temperature] = GetParam();
  const std::unique_ptr<Engine> plain = make_engine(plain_options());
  const std::unique_ptr<Engine> drafted = make_engine(draft_options(kind));
  ASSERT_TRUE(plain != nullptr && drafted != nullptr);
  const std::vector<std::optional<TreePolicy>> none(mixed_trees().size());
  const std::vector<Outcome> want = run_all(*plain, some_requests(none, temperature));
  const std::vector<Outcome> got = run_all(*drafted, some_requests(mixed_trees(), temperature));
  for (std::size_t i = 0; i < want.size(); ++i) {
    EXPECT_EQ(got[i].tokens, want[i].tokens) << "request " << i;
    for (const auto& [position, logits] : got[i].logits) {  // a tree may look beyond the last token
      if (!want[i].logits.contains(position)) continue;
      EXPECT_EQ(logits, want[i].logits.at(position)) << "request " << i;
    }
  }
  const SpeculationStats stats = drafted->stats().speculation;
  EXPECT_GT(stats.verify_steps, 0);
  EXPECT_GE(stats.emitted_tokens, stats.verify_steps);
  if (kind == DraftKind::kModel) {
    EXPECT_GT(stats.accepted_by_depth.at(0), 0);
    EXPECT_LT(drafted->stats().decode_rows, plain->stats().decode_rows);
  }
}

INSTANTIATE_TEST_SUITE_P(Drafts, Speculation,
                         testing::Combine(testing::Values(DraftKind::kModel, DraftKind::kNgram),
                                          testing::Values(0.0f, 0.8f)));

TEST(SpeculationEngine, SurvivesPreemptionAndSmallBudgets) {
  EngineOptions options = draft_options(DraftKind::kModel);
  const std::vector<Outcome> want = run_all(*make_engine(options), some_requests(mixed_trees(), 0.0f));
  options.num_blocks = 14;
  options.max_num_batched_tokens = 60;
  options.max_tree_size = 20;
  const std::unique_ptr<Engine> engine = make_engine(options);
  const std::vector<Outcome> got = run_all(*engine, some_requests(mixed_trees(), 0.0f));
  EXPECT_GT(engine->stats().preemptions, 0);
  for (std::size_t i = 0; i < want.size(); ++i) EXPECT_EQ(got[i].tokens, want[i].tokens) << "request " << i;
}

TEST(SpeculationEngine, RefusesTreesThatItCannotVerify) {
  EngineOptions options = draft_options(DraftKind::kNgram);
  options.backend = "TRITON_ATTN";
  const std::unique_ptr<Engine> engine = make_engine(options);
  GenerateRequest request = greedy_request({5, 6, 7}, 8);
  request.tree = TreePolicy{};
  EXPECT_EQ(engine->add(request).status().code(), StatusCode::kUnsupported);
  request.tree = choices("[(0,), (0, 0)]");
  EXPECT_TRUE(engine->add(request).ok());

  const std::unique_ptr<Engine> windowed = make_engine({.model = fixture("mistral"), .draft = DraftKind::kNgram});
  request.tree = TreePolicy{};
  EXPECT_EQ(windowed->add(request).status().code(), StatusCode::kUnsupported);
}

// Without batch invariance a tree is verified together; in float32 its rounding is far below any tie.
TEST(SpeculationEngine, VerifiesTreesTogether) {
  EngineOptions options = draft_options(DraftKind::kModel);
  options.batch_invariance = BatchInvariance::kOff;
  options.dtype = DType::kFloat32;
  const std::vector<std::optional<TreePolicy>> none(mixed_trees().size());
  const std::vector<Outcome> want = run_all(*make_engine(options), some_requests(none, 0.0f));
  const std::unique_ptr<Engine> engine = make_engine(options);
  const std::vector<Outcome> got = run_all(*engine, some_requests(mixed_trees(), 0.0f));
  for (std::size_t i = 0; i < want.size(); ++i) EXPECT_EQ(got[i].tokens, want[i].tokens) << "request " << i;
  EXPECT_GT(engine->stats().speculation.accepted_by_depth.at(1), 0);
}

// Draws the next tokens of one prompt under many seeds through trees and compares their counts with the target's own
// probabilities.
TEST(SpeculationEngine, SampledTokensFollowTheTargetsDistribution) {
  const std::unique_ptr<Engine> engine = make_engine(draft_options(DraftKind::kModel));
  constexpr std::int32_t kDraws = 600;
  std::vector<GenerateRequest> requests;
  for (std::int32_t i = 0; i < kDraws; ++i) {
    GenerateRequest request = greedy_request(some_prompt(12, 5, kVocab), 3);
    request.sampling.temperature = 1.0f;
    request.sampling.top_k = 5;
    request.sampling.seed = static_cast<std::uint64_t>(i);
    request.tree = choices("[(0,), (1,), (0, 0), (1, 0)]");
    requests.push_back(std::move(request));
  }
  const SamplingParams params = requests.front().sampling;
  const std::vector<Outcome> outcomes = run_all(*engine, std::move(requests));
  EXPECT_GT(engine->stats().speculation.accepted_by_depth.at(0), 0);
  // The second token, which a tree verified, given the first: over all first tokens together.
  std::map<std::int32_t, std::vector<const Outcome*>> by_first;
  for (const Outcome& outcome : outcomes) by_first[outcome.tokens[0]].push_back(&outcome);
  double chi_square = 0.0;
  int degrees = 0;
  for (const auto& [first, group] : by_first) {
    if (group.size() < 60) continue;
    std::map<std::int32_t, int> counts;
    for (const Outcome* outcome : group) ++counts[outcome->tokens[1]];
    for (const Candidate& one : sampling_candidates(group.front()->logits.at(13), params)) {
      const double wanted = one.probability * static_cast<double>(group.size());
      chi_square += std::pow(counts[one.token] - wanted, 2.0) / wanted;
      counts.erase(one.token);
      ++degrees;
    }
    EXPECT_TRUE(counts.empty()) << "a token outside the target's top_k";
    --degrees;
  }
  ASSERT_GT(degrees, 3);
  EXPECT_LT(chi_square, degrees + 4.0 * std::sqrt(2.0 * degrees));
}

TEST(TreeGrowth, ChoicesTakeTheNamedChildren) {
  TreeGrowth growth(choices("[(0,), (2,), (0, 1)]"), 9, 8);
  const std::vector<float> first = {0.0f, 3.0f, 2.0f, 1.0f};
  std::span<const float> logits = first;
  growth.expand({&logits, 1}, 0.0f);
  ASSERT_EQ(growth.num_new_rows(), 1);
  EXPECT_EQ(growth.row_tokens(), (std::vector<std::int32_t>{9, 1}));
  const std::vector<float> second = {5.0f, 0.0f, 4.0f, 0.0f};
  logits = second;
  growth.expand({&logits, 1}, 0.0f);
  EXPECT_EQ(growth.num_new_rows(), 0);
  const Result<DraftTree> draft = growth.finish();
  ASSERT_TRUE(draft.ok());
  EXPECT_EQ(draft->tokens, (std::vector<std::int32_t>{9, 1, 3, 2}));
  EXPECT_EQ(draft->draft_rows, (std::vector<std::int32_t>{0, 1, -1, -1}));
  EXPECT_EQ(draft->tree.parent(3), 1);
}

TEST(TreeGrowth, KeepsTheLikeliestNodes) {
  TreeGrowth growth({.max_nodes = 3, .max_depth = 2, .beam = 1, .branch = 2, .min_probability = 0.0f}, 0, 8);
  const std::vector<float> first = {std::log(0.7f), std::log(0.2f), std::log(0.1f)};
  std::span<const float> logits = first;
  growth.expand({&logits, 1}, 0.0f);
  ASSERT_EQ(growth.num_new_rows(), 1);
  const std::vector<float> second = {std::log(0.1f), std::log(0.3f), std::log(0.6f)};
  logits = second;
  growth.expand({&logits, 1}, 0.0f);
  const Result<DraftTree> draft = growth.finish();
  ASSERT_TRUE(draft.ok());
  EXPECT_EQ(draft->tokens, (std::vector<std::int32_t>{0, 0, 2, 1}));  // 0.7, 0.42, 0.21; not 0.2
  EXPECT_EQ(draft->tree.parent(2), 1);
  EXPECT_EQ(draft->tree.parent(3), 1);
}

TEST(TreeGrowth, NgramsBranchWhereTheSequenceDid) {
  const std::vector<std::int32_t> tokens = {1, 2, 3, 9, 1, 2, 4, 8, 1, 2};
  const Result<DraftTree> draft = draft_from_ngrams(TreePolicy{.max_depth = 2}, tokens, 8);
  ASSERT_TRUE(draft.ok());
  EXPECT_EQ(draft->tokens, (std::vector<std::int32_t>{2, 4, 3, 8, 9}));  // the latest match first, levels in order
  EXPECT_EQ(draft->tree.parent(3), 1);
  EXPECT_EQ(draft->tree.parent(4), 2);
}

TEST(Sampler, DependsOnSeedAndPositionAlone) {
  EXPECT_EQ(uniform_at(1, 2), uniform_at(1, 2));
  EXPECT_NE(uniform_at(1, 2), uniform_at(1, 3));
  EXPECT_NE(uniform_at(1, 2), uniform_at(2, 2));
  double sum = 0.0;
  for (std::uint64_t i = 0; i < 10000; ++i) sum += uniform_at(7, i);
  EXPECT_NEAR(sum / 10000.0, 0.5, 0.02);
}

TEST(Sampler, CutsToTopKAndTopP) {
  const std::vector<float> logits = {std::log(0.1f), std::log(0.4f), std::log(0.2f), std::log(0.3f)};
  SamplingParams params{.temperature = 1.0f, .top_k = 3};
  std::vector<Candidate> candidates = sampling_candidates(logits, params);
  ASSERT_EQ(candidates.size(), 3u);
  EXPECT_EQ(candidates[0].token, 1);
  EXPECT_NEAR(candidates[0].probability, 0.4 / 0.9, 1e-6);
  params = {.temperature = 1.0f, .top_p = 0.65f};
  candidates = sampling_candidates(logits, params);
  ASSERT_EQ(candidates.size(), 2u);
  EXPECT_EQ(candidates[1].token, 3);
  EXPECT_NEAR(candidates[1].probability, 0.3 / 0.7, 1e-6);
}

}  // namespace
}  // namespace quire::engine_test
