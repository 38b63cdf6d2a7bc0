// Generated attention cases against the float64 reference, on every ISA of this machine.
// QUIRE_PROPERTY_CASES sets their number (default 20,000), QUIRE_PROPERTY_SEED the first seed: a message's seed replays
// its case with QUIRE_PROPERTY_SEED=<seed> QUIRE_PROPERTY_CASES=1.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "support/attention_case.h"
#include "support/runtimes.h"

namespace quire::testing {
namespace {

constexpr std::uint64_t kShards = 8;

std::uint64_t environment_number(const char* name, std::uint64_t fallback) {
  const char* text = std::getenv(name);
  return text == nullptr ? fallback : std::strtoull(text, nullptr, 10);
}

void check_case(std::uint64_t seed, const Runtime& runtime) {
  AttentionCase c(random_shape(seed));
  const std::string what = describe(c.shape()) + " on " + std::string(isa_name(runtime.isa));
  const Status status = c.run(runtime);
  ASSERT_TRUE(status.ok()) << status.to_string() << "\n" << what;
  const Comparison result = compare_with_reference(c, runtime.isa == Isa::kAvx512Bf16);
  EXPECT_LE(result.worst_ratio, 1.0) << what;
  EXPECT_LE(result.nmse, result.nmse_bound) << what;
  EXPECT_LE(result.worst_lse, result.lse_bound) << what;
  EXPECT_TRUE(c.is_memory_intact()) << what;
}

class AttentionProperty : public ::testing::TestWithParam<std::uint64_t> {};

TEST_P(AttentionProperty, EqualsFloat64) {
  const std::uint64_t cases = environment_number("QUIRE_PROPERTY_CASES", kSanitized ? 800 : 20000);
  const std::uint64_t first = environment_number("QUIRE_PROPERTY_SEED", 1);
  const auto runtimes = cpu_runtimes();
  std::uint64_t run = 0;
  for (std::uint64_t i = GetParam(); i < cases; i += kShards) {
    const std::uint64_t seed = first + i;
    // A single replayed case runs on all ISAs; in bulk they take turns, out of step with the shards.
    if (cases == 1) {
      for (const Runtime& runtime : runtimes) check_case(seed, runtime);
    } else {
      check_case(seed, runtimes[(i / kShards) % runtimes.size()]);
    }
    ++run;
    ASSERT_FALSE(HasFatalFailure()) << "stopped after " << run << " cases";
  }
  RecordProperty("cases", std::to_string(run));
}

INSTANTIATE_TEST_SUITE_P(Shards, AttentionProperty, ::testing::Range<std::uint64_t>(0, kShards));

}  // namespace
}  // namespace quire::testing
