// Growth: how much longer the parts of a tokenizer.json may make a text, so that a small file cannot ask for any
// memory.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <string_view>

#include "quire/status.h"

namespace quire::tokenizer {

// One for each list of parts that run one after the other: the factors multiply.
class Growth {
 public:
  // A step that makes a text up to `factor` times longer. Compatibility decompositions reach 11, other steps 3.
  Status add(double factor, std::string_view where) {
    constexpr double kMost = 1024.0;
    factor_ *= std::max(factor, 1.0);
    if (factor_ <= kMost) return {};
    return data_loss(std::string(where) + ": want parts that make a text at most 1024 times longer, got more");
  }
  // A step that writes `to` for each occurrence of at least `from_bytes` bytes.
  Status add_replacement(std::size_t from_bytes, std::string_view to, std::string_view where) {
    if (from_bytes == 0) return {};
    return add(std::ceil(static_cast<double>(to.size()) / static_cast<double>(from_bytes)), where);
  }

 private:
  double factor_ = 1.0;
};

// `text` with `to` for each `from`; an empty `from` stands nowhere.
inline std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  std::size_t offset = 0;
  for (std::size_t at; !from.empty() && (at = text.find(from, offset)) != std::string_view::npos;
       offset = at + from.size()) {
    out.append(text.substr(offset, at - offset)).append(to);
  }
  return out.append(text.substr(offset));
}

}  // namespace quire::tokenizer
