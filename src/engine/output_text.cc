// Implements OutputText.
#include "engine/output_text.h"

#include <algorithm>

namespace quire {
namespace {

// Tokens may cut a character; a decoder shows the cut as U+FFFD at the end. It is waited for this many tokens.
constexpr std::string_view kReplacement = "\xef\xbf\xbd";
constexpr std::size_t kMaxUndecoded = 8;

// The length of the longest end of `text` that begins some stop string.
std::size_t held_back(std::string_view text, std::span<const std::string> stops) {
  std::size_t held = 0;
  for (const std::string& stop : stops) {
    for (std::size_t length = std::min(text.size(), stop.size() - 1); length > held; --length) {
      if (text.ends_with(std::string_view(stop).substr(0, length))) held = length;
    }
  }
  return held;
}

}  // namespace

bool OutputText::add(std::int32_t token, const DecodeTokens& decode, std::span<const std::string> stops) {
  if (!decode) return false;
  undecoded_.push_back(token);
  pending_ = decode(undecoded_);
  if (pending_.ends_with(kReplacement) && undecoded_.size() < kMaxUndecoded) return false;
  const std::size_t before = text_.size();
  text_ += pending_;
  pending_.clear();
  undecoded_.clear();
  std::size_t cut = std::string::npos;
  for (const std::string& stop : stops) {
    cut = std::min(cut, text_.find(stop, before >= stop.size() ? before - stop.size() + 1 : 0));
  }
  if (cut == std::string::npos) return false;
  text_.resize(cut);
  return true;
}

std::string OutputText::take(Rest rest, std::span<const std::string> stops) {
  if (rest == Rest::kFlush) {
    text_ += pending_;
    pending_.clear();
  }
  const std::size_t end = rest == Rest::kFlush ? text_.size() : text_.size() - held_back(text_, stops);
  if (end <= sent_) return {};
  std::string out = text_.substr(sent_, end - sent_);
  sent_ = end;
  return out;
}

}  // namespace quire
