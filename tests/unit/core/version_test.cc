// Tests of quire/version.h.
#include "quire/version.h"

#include <gtest/gtest.h>

#include <regex>
#include <string>

namespace {

TEST(Version, HasThreeNumbers) {
  EXPECT_TRUE(std::regex_match(std::string(quire::version()), std::regex(R"(\d+\.\d+\.\d+)"))) << quire::version();
}

}  // namespace
