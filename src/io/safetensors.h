// Safetensors files: a reader that maps them and believes nothing they say, and a writer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "io/safetensors_header.h"
#include "quire/status.h"
#include "quire/tensor.h"

namespace quire {

// A header longer than this is refused, as the format's own reader does.
inline constexpr std::int64_t kMaxSafetensorsHeaderBytes = 100'000'000;

// An open file. Everything is checked when it is opened: lengths, offsets (inside the file, without overlap or hole),
// dtype x shape == bytes, names. Errors are kDataLoss and name the file and the key. Moving the object keeps the views.
class SafetensorsFile {
 public:
  // Maps the file; kNotFound if it cannot be opened.
  static Result<SafetensorsFile> open(const std::string& path);
  // Reads from memory that the caller keeps alive; `name` stands for the path in messages.
  static Result<SafetensorsFile> from_bytes(std::span<const std::byte> bytes, std::string name);

  const std::string& path() const;
  const std::map<std::string, std::string>& metadata() const;
  // The tensors' entries, sorted by name.
  std::span<const SafetensorsEntry> entries() const;
  std::vector<std::string> names() const;
  bool contains(std::string_view name) const;

  // A row-major view of the tensor, valid while the file object lives; the memory is read-only. A tensor that is not
  // aligned to its element in the file is copied once. Errors: kNotFound, or kUnsupported for dtypes that quire has not
  // (F64, BOOL, 16-bit integers ...) and more than kMaxRank dimensions. Thread-safe.
  Result<TensorView> tensor(std::string_view name) const;
  // The tensor's bytes as they are in the file, of any dtype.
  Result<std::span<const std::byte>> raw(std::string_view name) const;

  SafetensorsFile(SafetensorsFile&&) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) noexcept;
  ~SafetensorsFile();

 private:
  struct State;
  explicit SafetensorsFile(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

struct NamedTensor {
  std::string name;
  TensorView tensor;  // contiguous, on the CPU
};

// The bytes of a safetensors file with these tensors: wide dtypes first, so that all are aligned, else in the given
// order. Errors: a name twice, a tensor that is not contiguous or not on the CPU, null data.
Result<std::vector<std::byte>> serialize_safetensors(std::span<const NamedTensor> tensors,
                                                     const std::map<std::string, std::string>& metadata);
// Writes them to a file beside `path` that then takes its name.
Status write_safetensors(const std::string& path, std::span<const NamedTensor> tensors,
                         const std::map<std::string, std::string>& metadata);

}  // namespace quire
