// Token trees: order, masks, levels, and every way in which choices can be wrong.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>

#include "quire/tree.h"

namespace quire {
namespace {

const std::vector<TreePath> kTwoByTwo = {{0}, {1}, {0, 0}, {0, 1}, {1, 0}, {1, 1}};

bool bit(const std::vector<std::uint64_t>& mask, std::size_t words, std::size_t row, std::size_t col) {
  return ((mask[row * words + col / 64] >> (col % 64)) & 1u) != 0;
}

TEST(TokenTree, MaskOfTheWorkedExample) {
  const TokenTree tree = TokenTree::from_choices(kTwoByTwo).value();
  const char* want[] = {"1000000", "1100000", "1010000", "1101000", "1100100", "1010010", "1010001"};
  ASSERT_EQ(tree.size(), 7);
  EXPECT_EQ(tree.depth_counts(), (std::vector<std::int32_t>{2, 4}));
  const std::vector<float> bias = tree.bias();
  for (std::size_t row = 0; row < 7; ++row) {
    for (std::size_t col = 0; col < 7; ++col) {
      const bool visible = want[row][col] == '1';
      EXPECT_EQ(bit(tree.mask(), 1, row, col), visible) << row << " " << col;
      EXPECT_EQ(bias[row * 7 + col] == 0.0f, visible) << row << " " << col;
      EXPECT_TRUE(visible || bias[row * 7 + col] == -std::numeric_limits<float>::infinity());
    }
  }
}

TEST(TokenTree, SortsChoicesBreadthFirst) {
  std::vector<TreePath> shuffled = kTwoByTwo;
  std::mt19937 random(3);
  for (int i = 0; i < 20; ++i) {
    std::shuffle(shuffled.begin(), shuffled.end(), random);
    const TokenTree tree = TokenTree::from_choices(shuffled).value();
    EXPECT_TRUE(std::equal(kTwoByTwo.begin(), kTwoByTwo.end(), tree.choices().begin(), tree.choices().end()));
    EXPECT_EQ(tree.parent(5), 2);
    EXPECT_EQ(tree.depth(5), 2);
  }
}

TEST(TokenTree, ChainIsLowerTriangular) {
  const TokenTree tree = TokenTree::chain(70).value();
  ASSERT_EQ(tree.size(), 71);
  ASSERT_EQ(tree.mask_words(), 2);
  for (std::size_t row = 0; row < 71; ++row) {
    for (std::size_t col = 0; col < 71; ++col) EXPECT_EQ(bit(tree.mask(), 2, row, col), col <= row);
  }
  EXPECT_EQ(tree.depth_counts(), std::vector<std::int32_t>(70, 1));
  EXPECT_EQ(TokenTree::chain(0).value().size(), 1);
}

TEST(TokenTree, RandomMasksHoldAncestorsOnly) {
  std::mt19937 random(5);
  for (int i = 0; i < 50; ++i) {
    const std::int32_t drafts = std::uniform_int_distribution<std::int32_t>(0, 200)(random);
    std::vector<std::int32_t> parents;
    for (std::int32_t node = 0; node < drafts; ++node) {
      parents.push_back(std::uniform_int_distribution<std::int32_t>(0, node)(random));
    }
    const TokenTree tree = TokenTree::from_parents(parents).value();
    const std::size_t words = static_cast<std::size_t>(tree.mask_words());
    std::int32_t counted = 0;
    for (std::int32_t count : tree.depth_counts()) counted += count;
    EXPECT_EQ(counted, drafts);
    for (std::int32_t row = 0; row < tree.size(); ++row) {
      std::vector<bool> want(static_cast<std::size_t>(tree.size()), false);
      std::int32_t depth = 0;
      for (std::int32_t node = row; true; node = tree.parent(node), ++depth) {
        want[static_cast<std::size_t>(node)] = true;
        if (node == 0) break;
      }
      EXPECT_EQ(tree.depth(row), depth);
      for (std::size_t col = 0; col < want.size(); ++col) {
        ASSERT_EQ(bit(tree.mask(), words, static_cast<std::size_t>(row), col), want[col]);
      }
    }
    // The same tree through its paths, whatever the order of its nodes.
    const TokenTree sorted = TokenTree::from_choices(tree.choices()).value();
    EXPECT_EQ(sorted.depth_counts(), tree.depth_counts());
  }
}

TEST(TokenTree, SubmaskDropsRowsAndColumns) {
  const TokenTree tree = TokenTree::from_choices(kTwoByTwo).value();
  const std::vector<std::uint64_t> sub = tree.submask(1, 5);
  ASSERT_EQ(sub.size(), 5u);
  for (std::size_t row = 0; row < 5; ++row) {
    for (std::size_t col = 0; col < 5; ++col) {
      EXPECT_EQ(bit(sub, 1, row, col), bit(tree.mask(), 1, row + 1, col + 1));
    }
  }
  EXPECT_EQ(tree.submask(0, 7), tree.mask());
  EXPECT_TRUE(tree.submask(1, 7).empty());
  EXPECT_TRUE(tree.submask(-1, 2).empty());
  EXPECT_TRUE(tree.submask(0, -1).empty());
  EXPECT_TRUE(tree.submask(7, 0).empty());
  const TokenTree chain = TokenTree::chain(140).value();
  const std::vector<std::uint64_t> wide = chain.submask(10, 130);
  for (std::size_t row = 0; row < 130; ++row) {
    for (std::size_t col = 0; col < 130; ++col) EXPECT_EQ(bit(wide, 3, row, col), col <= row);
  }
}

std::string choices_error(const std::vector<TreePath>& choices) {
  const auto tree = TokenTree::from_choices(choices);
  return tree.ok() ? "ok" : tree.status().message();
}

TEST(TokenTree, ErrorsNameTheOffendingPath) {
  EXPECT_EQ(choices_error({{0}, {0, 1, 2}}),
            "tree choices: path (0, 1, 2): want its parent (0, 1) in the tree, got none");
  EXPECT_EQ(choices_error({{1}, {0, 0}}), "tree choices: path (0, 0): want its parent (0,) in the tree, got none");
  EXPECT_EQ(choices_error({{0}, {1}, {0}}), "tree choices: path (0,): want every path once, got it twice");
  EXPECT_EQ(choices_error({{0}, {0, -3}}), "tree choices: path (0, -3): want entries >= 0, got -3");
  EXPECT_EQ(choices_error({{0}, {}}), "tree choices: path (): want at least one entry, got none");
  EXPECT_EQ(choices_error(std::vector<TreePath>(4096, TreePath{0})), "tree choices: want at most 4095 paths, got 4096");
  EXPECT_EQ(choices_error({TreePath(5000, 0)}),
            "tree choices: path (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ...): want at most 4095 entries, got "
            "5000");
}

TEST(TokenTree, ParentsAndChainsAreChecked) {
  EXPECT_EQ(TokenTree::from_parents(std::vector<std::int32_t>{0, 2}).status().message(),
            "tree parents[1]: want a node of 0 to 1, got 2");
  EXPECT_EQ(TokenTree::from_parents(std::vector<std::int32_t>{-1}).status().message(),
            "tree parents[0]: want a node of 0 to 0, got -1");
  EXPECT_EQ(TokenTree::from_parents(std::vector<std::int32_t>(4096, 0)).status().code(),
            StatusCode::kResourceExhausted);
  EXPECT_EQ(TokenTree::chain(-1).status().message(), "length of the chain: want 0 to 4095, got -1");
  EXPECT_FALSE(TokenTree::chain(4096).ok());
}

TEST(TokenTree, ParsesPythonLiterals) {
  const TokenTree tree = TokenTree::parse("[(0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1)]").value();
  EXPECT_EQ(tree.mask(), TokenTree::from_choices(kTwoByTwo).value().mask());
  EXPECT_EQ(TokenTree::parse(" [ ( 0 , ) ,\n(0,0,),\t] ").value().size(), 3);
  EXPECT_EQ(TokenTree::parse("[(0)]").value().size(), 2);
  EXPECT_EQ(TokenTree::parse("[]").value().size(), 1);
}

std::string parse_error(std::string_view text) {
  const auto tree = TokenTree::parse(text);
  return tree.ok() ? "ok" : tree.status().message();
}

TEST(TokenTree, ParseErrorsGiveTheColumn) {
  EXPECT_EQ(parse_error(""), "tree choices: column 1: want '[', got the end");
  EXPECT_EQ(parse_error("[(0,), (1,)"), "tree choices: column 12: want ']', got the end");
  EXPECT_EQ(parse_error("[(0,) (1,)]"), "tree choices: column 7: want ']', got '('");
  EXPECT_EQ(parse_error("[(0,)] x"), "tree choices: column 8: want the end of the text, got 'x'");
  EXPECT_EQ(parse_error("[(0, a)]"), "tree choices: column 6: want a number, got 'a'");
  EXPECT_EQ(parse_error("[0]"), "tree choices: column 2: want '(', got '0'");
  EXPECT_EQ(parse_error("[(\x01)]"), "tree choices: column 3: want a number, got byte 1");
  EXPECT_EQ(parse_error("[(,)]"), "tree choices: column 3: want a number, got ','");
  EXPECT_EQ(parse_error("[()]"), "tree choices: path (): want at least one entry, got none");
  EXPECT_EQ(parse_error("[(-1,)]"), "tree choices: path (-1,): want entries >= 0, got -1");
  EXPECT_EQ(parse_error("[(99999999999999999999,)]"), "tree choices: column 12: want a number below 2^31, got '9'");
}

TEST(TokenTree, HostileTextsEndInErrors) {
  EXPECT_FALSE(TokenTree::parse(std::string(100000, '[')).ok());
  EXPECT_FALSE(TokenTree::parse("[" + std::string(100000, '(')).ok());
  EXPECT_EQ(TokenTree::parse(std::string((1 << 20) + 1, ' ')).status().code(), StatusCode::kResourceExhausted);
  std::string many = "[";
  for (int i = 0; i < 10000; ++i) many += "(" + std::to_string(i) + ",),";
  EXPECT_EQ(TokenTree::parse(many + "]").status().code(), StatusCode::kResourceExhausted);
  std::string deep = "[(0";
  for (int i = 0; i < 10000; ++i) deep += ",0";
  EXPECT_EQ(TokenTree::parse(deep + ")]").status().code(), StatusCode::kResourceExhausted);
  std::mt19937 random(9);
  const std::string alphabet = "[](),-0123456789 \n\xff";
  for (int i = 0; i < 20000; ++i) {
    std::string text = i % 2 == 0 ? "[(0,),(0," : "";
    for (int j = 0; j < 12; ++j) text += alphabet[random() % alphabet.size()];
    const auto tree = TokenTree::parse(text);
    EXPECT_TRUE(tree.ok() || !tree.status().message().empty());
  }
}

}  // namespace
}  // namespace quire
