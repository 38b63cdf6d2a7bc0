// HfConfig: a checkpoint's JSON configuration with typed, checked reads; keys that nobody read are found at the end.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "quire/status.h"

namespace quire {

// A JSON object of a file. Reads note their keys, so that check_all_read can refuse a file that says something which
// the reader never asked for. Errors name file and key. null counts as absent. Copies share the noted keys.
class HfConfig {
 public:
  // Errors: kNotFound, kDataLoss (not JSON, not an object, larger than 64 MiB).
  static Result<HfConfig> open(const std::string& path);
  static Result<HfConfig> parse(std::string_view text, std::string name);

  const std::string& path() const;
  bool has(std::string_view key) const;
  // All keys of the object; asking for them reads none.
  std::vector<std::string> keys() const;

  // A count: an integer in [1, 2^31).
  Result<std::int32_t> count(std::string_view key) const;
  Result<std::int32_t> count_or(std::string_view key, std::int32_t fallback) const;
  // Any integer of 32 bits.
  Result<std::int32_t> integer_or(std::string_view key, std::int32_t fallback) const;
  Result<double> number(std::string_view key) const;
  Result<double> number_or(std::string_view key, double fallback) const;
  Result<bool> flag_or(std::string_view key, bool fallback) const;
  Result<std::string> text(std::string_view key) const;
  Result<std::string> text_or(std::string_view key, std::string_view fallback) const;
  // One integer or a list of them; absent: empty.
  Result<std::vector<std::int32_t>> integers(std::string_view key) const;
  Result<std::vector<std::string>> texts(std::string_view key) const;
  // The object under `key`; its errors name "key.inner".
  Result<HfConfig> object(std::string_view key) const;

  // Reads a key whose only supported value is `wanted`; absent is fine.
  Status expect_text(std::string_view key, std::string_view wanted) const;
  Status expect_flag(std::string_view key, bool wanted) const;
  Status expect_number(std::string_view key, double wanted) const;

  // An error names the first key that was neither read nor is known to change nothing: null, one of the common keys
  // that describe training or the file itself, or one of `harmless`.
  Status check_all_read(std::span<const std::string_view> harmless = {}) const;

 private:
  struct State;
  explicit HfConfig(std::shared_ptr<State> state) : state_(std::move(state)) {}
  Status wrong(std::string_view key, std::string_view wanted) const;
  std::shared_ptr<State> state_;
};

}  // namespace quire
