// Tests of the trace readers and of the batches drawn from traces.
#include "io/trace.h"

#include <gtest/gtest.h>

namespace quire {
namespace {

std::string data_file(const std::string& name) { return std::string(QUIRE_TEST_DATA_DIR) + "/traces/" + name; }

TEST(Trace, ReadsAzure) {
  const auto trace = read_trace(data_file("azure_llm_2023_conv_200.csv"));
  ASSERT_TRUE(trace.ok()) << trace.status().message();
  ASSERT_EQ(trace->size(), 200u);
  EXPECT_EQ(trace->front().context_tokens, 374);
  EXPECT_EQ(trace->front().generated_tokens, 44);
  EXPECT_TRUE(trace->front().hash_ids.empty());
  EXPECT_EQ(trace->front().arrival_seconds, 0.0);
  EXPECT_NEAR((*trace)[1].arrival_seconds, 4.314579, 1e-6);  // 18:15:46.680590 to 18:15:50.995169
  EXPECT_EQ(read_trace(data_file("azure_llm_2023_code_100.csv"))->size(), 100u);
}

TEST(Trace, ReadsMooncake) {
  const auto trace = read_trace(data_file("mooncake_conversation_50.jsonl"));
  ASSERT_TRUE(trace.ok()) << trace.status().message();
  ASSERT_EQ(trace->size(), 50u);
  EXPECT_EQ((*trace)[1].context_tokens, 7322);
  EXPECT_EQ((*trace)[1].generated_tokens, 490);
  EXPECT_EQ((*trace)[1].hash_ids.size(), 15u);
  EXPECT_EQ((*trace)[1].hash_ids[1], 14);
}

TEST(Trace, TimesCountFromTheFirstRequestOverMidnight) {
  const auto trace =
      parse_trace("TIMESTAMP,ContextTokens,GeneratedTokens\n2024-02-28 23:59:59.5,1,1\n2024-03-01 00:00:00,1,1\n", "t");
  ASSERT_TRUE(trace.ok()) << trace.status().message();
  EXPECT_DOUBLE_EQ((*trace)[1].arrival_seconds, 86400.5);  // a leap day lies between
  const auto mooncake = parse_trace(
      "{\"timestamp\": 500, \"input_length\": 1, \"output_length\": 1}\n"
      "{\"timestamp\": 2500, \"input_length\": 1, \"output_length\": 1}\n",
      "t");
  ASSERT_TRUE(mooncake.ok()) << mooncake.status().message();
  EXPECT_DOUBLE_EQ((*mooncake)[1].arrival_seconds, 2.0);
  EXPECT_FALSE(parse_trace("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,1\n", "t").ok());
}

TEST(Trace, ColumnsMayComeInAnyOrder) {
  const auto trace = parse_trace("GeneratedTokens,Extra,ContextTokens\r\n3,x,5\r\n\r\n", "t");
  ASSERT_TRUE(trace.ok()) << trace.status().message();
  ASSERT_EQ(trace->size(), 1u);
  EXPECT_EQ(trace->front().context_tokens, 5);
  EXPECT_EQ(trace->front().generated_tokens, 3);
}

void expect_complaint(const std::string& text, const std::string& part) {
  const Status status = parse_trace(text, "t.csv").status();
  EXPECT_EQ(status.code(), StatusCode::kDataLoss) << text;
  EXPECT_NE(status.message().find(part), std::string::npos) << status.message() << " lacks " << part;
}

TEST(Trace, ErrorsNameTheLine) {
  expect_complaint("", "t.csv:1: want the columns");
  expect_complaint("a,b,c\n1,2,3\n", "t.csv:1: want the columns");
  expect_complaint("X,ContextTokens,GeneratedTokens\nx,1,2\nx,1\n", "t.csv:3: want 3 cells, got 2");
  expect_complaint("TIMESTAMP,ContextTokens,GeneratedTokens\nx,1,2\n", "t.csv:2: TIMESTAMP: want");
  expect_complaint("ContextTokens,GeneratedTokens\n1,-2\n", "t.csv:2: want token counts");
  expect_complaint("ContextTokens,GeneratedTokens\n1,2.5\n", "t.csv:2: want token counts");
  expect_complaint("ContextTokens,GeneratedTokens\n99999999999999999999,2\n", "t.csv:2: want token counts");
  expect_complaint("{\"input_length\": 1}\n", "t.csv:1: want input_length and output_length");
  expect_complaint("{\"input_length\": 1, \"output_length\": -1}\n", "t.csv:1: want input_length");
  expect_complaint("{\"input_length\": 1, \"output_length\": 1}\n[]\n", "t.csv:2: want a JSON object");
  expect_complaint("{\"input_length\": 1, \"output_length\": 1, \"hash_ids\": [\"a\"]}\n", "t.csv:1: hash_ids");
  expect_complaint("{" + std::string(100000, '['), "t.csv:1: want JSON, got malformed text");
  EXPECT_EQ(read_trace("/nowhere/trace.csv").status().code(), StatusCode::kNotFound);
}

TEST(TraceDraw, TheSeedDecides) {
  const auto trace = read_trace(data_file("azure_llm_2023_conv_200.csv"));
  ASSERT_TRUE(trace.ok());
  const TraceDraw draw{.num_decodes = 20, .num_prefills = 5, .prefill_chunk_tokens = 512, .seed = 3};
  const auto batch = draw_batch(*trace, draw);
  ASSERT_TRUE(batch.ok());
  EXPECT_EQ(*batch, *draw_batch(*trace, draw));
  TraceDraw other = draw;
  other.seed = 4;
  EXPECT_NE(*batch, *draw_batch(*trace, other));
}

TEST(TraceDraw, RequestsAreWhatTheTraceAllows) {
  const std::vector<TraceRequest> trace = {{.context_tokens = 1000, .generated_tokens = 10, .hash_ids = {}}};
  const auto batch =
      draw_batch(trace, {.num_decodes = 200, .num_prefills = 200, .prefill_chunk_tokens = 300, .seed = 1});
  ASSERT_TRUE(batch.ok());
  ASSERT_EQ(batch->size(), 400u);
  std::int32_t shortest = 2000;
  std::int32_t longest = 0;
  for (std::size_t i = 0; i < 200; ++i) {
    EXPECT_EQ((*batch)[i].query_len, 1);
    shortest = std::min(shortest, (*batch)[i].seq_len);
    longest = std::max(longest, (*batch)[i].seq_len);
  }
  EXPECT_EQ(shortest, 1001);  // the first token of the answer
  EXPECT_EQ(longest, 1010);
  for (std::size_t i = 200; i < 400; ++i) {
    const BatchRequest& request = (*batch)[i];
    EXPECT_EQ((request.seq_len - request.query_len) % 300, 0);
    EXPECT_EQ(request.query_len, request.seq_len == 1000 ? 100 : 300);
  }
}

TEST(TraceDraw, CutsAndRefusals) {
  const std::vector<TraceRequest> trace = {{.context_tokens = 1000, .generated_tokens = 10, .hash_ids = {}},
                                           {.context_tokens = 0, .generated_tokens = 0, .hash_ids = {}}};
  const auto batch = draw_batch(trace, {.num_decodes = 50, .num_prefills = 50, .max_seq_len = 64, .seed = 1});
  ASSERT_TRUE(batch.ok());
  for (const BatchRequest& request : *batch) {
    EXPECT_GE(request.query_len, 1);
    EXPECT_LE(request.query_len, request.seq_len);
    EXPECT_LE(request.seq_len, 64);
  }
  EXPECT_EQ(draw_batch({}, {.num_decodes = 1}).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(draw_batch(trace, {.num_decodes = -1}).status().code(), StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace quire
