// Configurations: typed reads, errors that name file and key, and keys that nobody read.
#include "io/hf_config.h"

#include <gtest/gtest.h>

namespace quire {
namespace {

HfConfig parse(const std::string& text) {
  Result<HfConfig> config = HfConfig::parse(text, "dir/config.json");
  EXPECT_TRUE(config.ok()) << config.status().to_string();
  return std::move(config).value();
}

TEST(HfConfig, ReadsValues) {
  const HfConfig config = parse(
      R"({"n": 3, "eps": 1e-5, "tied": true, "act": "silu", "eos": 7, "ids": [1, 2], "none": null, "inner": {"x": 4}})");
  EXPECT_EQ(*config.count("n"), 3);
  EXPECT_EQ(*config.count_or("missing", 9), 9);
  EXPECT_EQ(*config.number("eps"), 1e-5);
  EXPECT_TRUE(*config.flag_or("tied", false));
  EXPECT_EQ(*config.text("act"), "silu");
  EXPECT_EQ(*config.integers("eos"), std::vector<std::int32_t>{7});
  EXPECT_EQ(config.integers("ids")->size(), 2u);
  EXPECT_FALSE(config.has("none"));
  EXPECT_EQ(*config.object("inner")->count("x"), 4);
}

TEST(HfConfig, ErrorsNameFileAndKey) {
  const HfConfig config = parse(R"({"n": -3, "big": 5000000000, "act": 3, "inner": {"x": "y"}, "list": [1.5]})");
  const auto expect_names = [](const Status& status, const std::string& key) {
    EXPECT_FALSE(status.ok()) << key;
    EXPECT_NE(status.message().find("dir/config.json: key '" + key + "'"), std::string::npos) << status.message();
  };
  expect_names(config.count("n").status(), "n");
  expect_names(config.count("missing").status(), "missing");
  expect_names(config.count("big").status(), "big");
  expect_names(config.text("act").status(), "act");
  expect_names(config.integers("list").status(), "list");
  expect_names(config.object("inner")->number("x").status(), "inner.x");
  expect_names(config.expect_text("inner", "y"), "inner");
  expect_names(config.expect_number("n", 1.0), "n");
}

TEST(HfConfig, UnreadKeysAreErrors) {
  const HfConfig config = parse(R"({"n": 3, "torch_dtype": "bfloat16", "off": null, "new_scaling": 2})");
  EXPECT_EQ(*config.count("n"), 3);
  const Status status = config.check_all_read();
  EXPECT_EQ(status.code(), StatusCode::kUnsupported);
  EXPECT_NE(status.message().find("'new_scaling'"), std::string::npos) << status.message();
  const std::string_view harmless[] = {"new_scaling"};
  EXPECT_TRUE(config.check_all_read(harmless).ok());
}

// Messages and copies of a value recurse into it, so that depth has to end somewhere.
TEST(HfConfig, DeepNestingIsAnError) {
  const auto nested = [](std::size_t levels) {
    return "{\"n\": " + std::string(levels, '[') + std::string(levels, ']') + "}";
  };
  EXPECT_TRUE(HfConfig::parse(nested(20), "config.json").ok());
  const auto config = HfConfig::parse(nested(1000000), "config.json");
  ASSERT_FALSE(config.ok());
  EXPECT_EQ(config.status().message(), "config.json: want JSON of at most 64 levels, got deeper text");
}

TEST(HfConfig, MalformedFilesAreErrors) {
  for (const char* text : {"", "{", "[1]", "3", "{\"a\": }", "\xff\xfe"}) {
    EXPECT_EQ(HfConfig::parse(text, "f").status().code(), StatusCode::kDataLoss) << text;
  }
  EXPECT_FALSE(HfConfig::parse(std::string(1000000, '['), "f").ok());
  EXPECT_EQ(HfConfig::open("/nowhere/config.json").status().code(), StatusCode::kNotFound);
}

}  // namespace
}  // namespace quire
