// Tests of the table printers, of JSON output and of the SVG chart.
#include "cli/table.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "cli/bench/svg.h"
#include "cli/json.h"

namespace quire::cli {
namespace {

const Table& sample() {
  static const Table kTable = {.header = {"name", "ms"}, .rows = {{"a|b", "1.5"}, {"c, \"d\"", "12.25"}, {"é", ""}}};
  return kTable;
}

TEST(Table, TextAlignsColumns) {
  EXPECT_EQ(text_table(sample()),
            "name       ms\n"
            "a|b       1.5\n"
            "c, \"d\"  12.25\n"
            "é\n");
}

TEST(Table, MarkdownEscapesPipes) {
  EXPECT_EQ(markdown_table(sample()), "| name | ms |\n|---|---:|\n| a\\|b | 1.5 |\n| c, \"d\" | 12.25 |\n| é | |\n");
}

TEST(Table, CsvQuotesWhatNeedsIt) { EXPECT_EQ(csv_table(sample()), "name,ms\na|b,1.5\n\"c, \"\"d\"\"\",12.25\né,\n"); }

TEST(Table, JsonKeepsNumbersAndText) {
  const auto parsed = nlohmann::json::parse(json_table(sample()));
  ASSERT_EQ(parsed.size(), 3u);
  EXPECT_EQ(parsed[0]["name"], "a|b");
  EXPECT_EQ(parsed[1]["ms"], 12.25);
  EXPECT_EQ(parsed[2]["ms"], "");
}

TEST(Table, FormatNames) {
  EXPECT_EQ(*parse_format("md"), Format::kMarkdown);
  EXPECT_EQ(*parse_format("markdown"), Format::kMarkdown);
  EXPECT_EQ(*parse_format("csv"), Format::kCsv);
  EXPECT_FALSE(parse_format("xml").ok());
}

TEST(Table, ShortNumbers) {
  EXPECT_EQ(short_number(0), "0");
  EXPECT_EQ(short_number(0.01234), "0.0123");
  EXPECT_EQ(short_number(1.234), "1.23");
  EXPECT_EQ(short_number(123.4), "123");
  EXPECT_EQ(short_number(12345.6), "12346");
  EXPECT_EQ(short_number(-2.5), "-2.50");
  EXPECT_EQ(short_number(1e-7), "1.00e-07");
  EXPECT_EQ(short_number(std::nan("")), "nan");
  EXPECT_EQ(short_number(HUGE_VAL), "inf");
}

TEST(Json, NestsAndEscapes) {
  const JsonValue value = JsonValue::Object{{"a", JsonValue::Array{1, "x\"y", true, JsonValue()}}, {"b", 0.5}};
  const auto parsed = nlohmann::json::parse(json_text(value));
  EXPECT_EQ(parsed["a"], (nlohmann::json{1, "x\"y", true, nullptr}));
  EXPECT_EQ(parsed["b"], 0.5);
}

TEST(Svg, DrawsABarForEachRow) {
  const BarChart chart = {.title = "A & B",
                          .subtitle = "<machine>",
                          .second_line = "",
                          .bars = {{.label = "q2k", .fraction = 0.5, .memory_bound = false, .note = "50 %"},
                                   {.label = "q1s4k", .fraction = 7.0, .memory_bound = true, .note = "?"}}};
  const std::string svg = svg_bar_chart(chart);
  EXPECT_TRUE(svg.starts_with("<svg "));
  EXPECT_NE(svg.find("A &amp; B"), std::string::npos);
  EXPECT_NE(svg.find("&lt;machine&gt;"), std::string::npos);
  EXPECT_NE(svg.find("width=\"210.0\""), std::string::npos);  // half of the plot
  EXPECT_NE(svg.find("width=\"441.0\""), std::string::npos);  // cut at 105 %
}

}  // namespace
}  // namespace quire::cli
