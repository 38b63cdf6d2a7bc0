// OutputText: the text of a request's output as it grows, cut at stop strings and handed out in whole characters.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

namespace quire {

using DecodeTokens = std::function<std::string(std::span<const std::int32_t>)>;

class OutputText {
 public:
  // Takes one more token. True if a stop string is complete: the text then ends in front of it.
  bool add(std::int32_t token, const DecodeTokens& decode, std::span<const std::string> stops);
  // The text that is new and that no stop string can take back; `last`: everything that is left.
  enum class Rest : std::uint8_t { kHold, kFlush };
  std::string take(Rest rest, std::span<const std::string> stops);

 private:
  std::vector<std::int32_t> undecoded_;  // tokens that do not end at a character's border yet
  std::string pending_;                  // their text so far
  std::string text_;
  std::size_t sent_ = 0;
};

}  // namespace quire
