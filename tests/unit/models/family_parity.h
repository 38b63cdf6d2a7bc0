// Whole comparisons of a family with transformers: every prompt of its fixture, prefill and greedy decode.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "quire/status.h"

namespace quire::parity {

struct FamilyCase {
  std::string fixture = {};
  std::string backend = {};  // empty: the family's own
  std::int32_t chunk = 128;  // tokens of a prompt that are computed at a time
};
// Expects the fixture's logits for every prompt, for every token decoded after it, and its greedy tokens.
void expect_parity(const FamilyCase& one);
// The same for an encoder-decoder, whose prompts are the encoder's.
void expect_cross_parity(const FamilyCase& one);

// Expects that the prompts' logits in bfloat16 are 6 % off at most, in the mean.
void expect_bfloat16(const std::string& fixture);

// A copy of a fixture with another config.json, gone with the object.
class ChangedFixture {
 public:
  ChangedFixture(const std::string& fixture, const std::string& config);
  ChangedFixture(const ChangedFixture&) = delete;
  ChangedFixture& operator=(const ChangedFixture&) = delete;
  ~ChangedFixture();
  const std::string& folder() const { return folder_; }

 private:
  std::string folder_;
};

// The message of the error of loading the fixture on `backend`; empty where it loads.
std::string load_error(const FamilyCase& one);
// The same with `key` of its config.json ("outer/inner" inside an object) set to `json`.
std::string changed_load_error(const std::string& fixture, const std::string& key, const std::string& json);

}  // namespace quire::parity
