// A tree of draft tokens verified in one call of TREE_ATTN: each node sees what its branch alone would have seen.
#include "attention_layer.h"

namespace {

constexpr int kContext = 40;
constexpr int kQueryRow = example::kHeads * example::kHeadSize;
constexpr int kKeyRow = example::kKvHeads * example::kHeadSize;

// The given rows of a row-major array, one behind the other.
std::vector<float> take_rows(const std::vector<float>& values, int row_size, const std::vector<int>& rows) {
  std::vector<float> taken;
  for (const int row : rows)
    taken.insert(taken.end(), values.begin() + row * row_size, values.begin() + (row + 1) * row_size);
  return taken;
}

struct Tokens {
  std::vector<float> query;
  std::vector<float> key;
  std::vector<float> value;
};

Tokens random_tokens(int count, unsigned seed) {
  return {example::random_values(static_cast<std::size_t>(count) * kQueryRow, seed),
          example::random_values(static_cast<std::size_t>(count) * kKeyRow, seed + 1),
          example::random_values(static_cast<std::size_t>(count) * kKeyRow, seed + 2)};
}

// Output of `rows` of the draft after the context, as a tree or as a chain.
std::vector<float> run_draft(const Tokens& draft, const std::vector<int>& rows, const quire::TokenTree* tree) {
  example::AttentionLayerExample layer("TREE_ATTN");
  example::Request request;
  request.blocks = {7, 3, 9, 12};
  request.query_len = kContext;
  Tokens context = random_tokens(kContext, 100);
  layer.run({request}, context.query, context.key, context.value);
  request.context_len = kContext;
  request.query_len = static_cast<int>(rows.size());
  request.tree = tree;
  auto query = take_rows(draft.query, kQueryRow, rows);
  auto key = take_rows(draft.key, kKeyRow, rows);
  auto value = take_rows(draft.value, kKeyRow, rows);
  return layer.run({request}, query, key, value);
}

}  // namespace

int main() {
  // Two children of the root, two children of the first: nodes 0 (root), (0), (1), (0,0), (0,1).
  const quire::TokenTree tree = example::check(quire::TokenTree::parse("[(0,), (1,), (0, 0), (0, 1)]"));
  const Tokens draft = random_tokens(tree.size(), 200);
  const auto verified = run_draft(draft, {0, 1, 2, 3, 4}, &tree);
  double worst = 0.0;
  for (const std::vector<int>& branch : {std::vector<int>{0, 1, 3}, {0, 1, 4}, {0, 2}}) {
    const auto alone = run_draft(draft, branch, nullptr);
    const double difference = example::largest_difference(take_rows(verified, kQueryRow, branch), alone);
    std::printf("branch of %zu nodes: largest difference to causal attention %.2e\n", branch.size(), difference);
    worst = std::max(worst, difference);
  }
  return worst < 1e-5 ? 0 : 1;
}
