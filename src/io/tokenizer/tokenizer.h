// Tokenizer: text to token ids and back, as a Hugging Face tokenizer.json describes it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "quire/status.h"

namespace quire {

// Whether the file's post-processor adds its tokens (beginning of text, [CLS] ... [SEP]).
enum class AddSpecialTokens : std::uint8_t { kNo, kYes };
// Whether decode leaves out special tokens.
enum class SkipSpecialTokens : std::uint8_t { kNo, kYes };

// Thread-safe after loading.
class Tokenizer {
 public:
  // Errors name the file and the key: kNotFound, kDataLoss, or kUnsupported for parts that quire does not know.
  static Result<Tokenizer> load(const std::string& path);
  static Result<Tokenizer> parse(std::string_view json, const std::string& name);

  // Invalid UTF-8 counts as U+FFFD. kResourceExhausted if a pattern of the file needs too many steps on this text.
  Result<std::vector<std::int32_t>> encode(std::string_view text, AddSpecialTokens add = AddSpecialTokens::kYes) const;
  // Valid UTF-8; ids without a token are an error.
  Result<std::string> decode(std::span<const std::int32_t> ids, SkipSpecialTokens skip = SkipSpecialTokens::kYes) const;

  std::optional<std::int32_t> token_to_id(std::string_view token) const;
  std::optional<std::string_view> id_to_token(std::int32_t id) const;
  // One more than the largest id.
  std::int32_t vocab_size() const;

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

 private:
  struct State;
  explicit Tokenizer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// Text of a growing list of ids, given out as soon as it is whole: a character whose bytes are still to come is held
// back.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, SkipSpecialTokens skip = SkipSpecialTokens::kYes)
      : tokenizer_(&tokenizer), skip_(skip) {}

  // The text that this id completes; may be empty.
  Result<std::string> add(std::int32_t id);
  // What is still held back.
  Result<std::string> finish();

 private:
  const Tokenizer* tokenizer_;
  SkipSpecialTokens skip_;
  std::vector<std::int32_t> ids_;  // of the text that was given out last, and of the text since
  std::size_t given_ = 0;          // ids_ up to here have been given out
};

}  // namespace quire
