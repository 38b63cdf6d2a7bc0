// Names of backplanes and ISAs, QUIRE_ISA, and the measurement of ceilings.
#include "quire/runtime.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "cpu/ceilings.h"

namespace quire {
namespace {

// Sets QUIRE_ISA for one test and puts the old value back.
class IsaVariable {
 public:
  explicit IsaVariable(const char* value) {
    const char* old = std::getenv("QUIRE_ISA");
    had_ = old != nullptr;
    if (had_) old_ = old;
    setenv("QUIRE_ISA", value, 1);
  }
  ~IsaVariable() {
    if (had_) {
      setenv("QUIRE_ISA", old_.c_str(), 1);
    } else {
      unsetenv("QUIRE_ISA");
    }
  }
  IsaVariable(const IsaVariable&) = delete;
  IsaVariable& operator=(const IsaVariable&) = delete;

 private:
  bool had_ = false;
  std::string old_;
};

TEST(Runtime, NamesRoundTrip) {
  for (Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16}) {
    ASSERT_TRUE(parse_isa(isa_name(isa)).ok());
    EXPECT_EQ(*parse_isa(isa_name(isa)), isa);
  }
  for (Backplane backplane : {Backplane::kReference, Backplane::kCpu, Backplane::kCuda}) {
    ASSERT_TRUE(parse_backplane(backplane_name(backplane)).ok());
    EXPECT_EQ(*parse_backplane(backplane_name(backplane)), backplane);
  }
}

TEST(Runtime, UnknownNamesListTheKnownOnes) {
  EXPECT_EQ(parse_isa("sse9").status().message(), "isa: want one of scalar, avx2, avx512, avx512bf16, got 'sse9'");
  EXPECT_EQ(parse_backplane("tpu").status().message(), "backplane: want one of reference, cpu, cuda, got 'tpu'");
}

TEST(Runtime, ScalarIsAlwaysThere) {
  ASSERT_FALSE(available_isas().empty());
  EXPECT_EQ(available_isas().front(), Isa::kScalar);
}

TEST(Runtime, VariableForcesTheIsa) {
  const IsaVariable forced("scalar");
  ASSERT_TRUE(default_isa().ok());
  EXPECT_EQ(*default_isa(), Isa::kScalar);
  ASSERT_TRUE(default_runtime().ok());
  EXPECT_EQ(default_runtime()->isa, Isa::kScalar);
}

TEST(Runtime, UnknownIsaInTheVariableIsAnError) {
  const IsaVariable forced("AVX512");
  ASSERT_FALSE(default_isa().ok());
  EXPECT_EQ(default_isa().status().code(), StatusCode::kInvalidArgument);
  EXPECT_NE(default_isa().status().message().find("QUIRE_ISA"), std::string::npos);
}

TEST(Ceilings, AreMeasured) {
  const auto found = cpu::measure_ceilings(1);
  ASSERT_TRUE(found.ok()) << found.status().to_string();
  EXPECT_EQ(found->num_threads, 1);
  EXPECT_GT(found->read_one.best, 0.0);
  EXPECT_GE(found->read_one.best, found->read_one.median);
  const std::vector<Isa> isas = available_isas();
  EXPECT_EQ(found->fma_one.best > 0.0, isas.back() >= Isa::kAvx2);
  EXPECT_EQ(found->bf16_one.best > 0.0, isas.back() == Isa::kAvx512Bf16);
}

}  // namespace
}  // namespace quire
