// Regex: a Unicode pattern of a tokenizer file, matched by PCRE2 with the meaning that Oniguruma gives it.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "quire/status.h"

namespace quire::tokenizer {

class Regex {
 public:
  // `where` names the pattern's place in messages.
  static Result<Regex> compile(std::string_view pattern, std::string_view where);
  // [begin, end) of all matches that are not empty, left to right. An error if matching takes too many steps.
  Result<std::vector<std::pair<std::size_t, std::size_t>>> find_all(std::string_view text) const;

 private:
  struct Code;
  explicit Regex(std::shared_ptr<const Code> code) : code_(std::move(code)) {}
  std::shared_ptr<const Code> code_;
};

}  // namespace quire::tokenizer
