// Status and Result<T>: how every function of the public API reports success or a readable error.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace quire {

enum class StatusCode {
  kOk,
  kInvalidArgument,    // an argument is wrong by itself: null, dtype, shape, stride, name
  kOutOfRange,         // an index or a length leaves its allowed range
  kUnsupported,        // well formed, but this backend, ISA or device cannot do it
  kNotFound,           // no such name, file or key
  kDataLoss,           // a file is truncated, malformed or inconsistent
  kResourceExhausted,  // no free block, scratch too small, size overflow
  kInternal,           // a bug of this library
};

// The name of a code, for instance "invalid argument".
std::string_view status_code_name(StatusCode code);

// The outcome of an operation. An error carries a code and a message that names the argument, what was wanted and what
// came.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }
  // "invalid argument: query.dtype: want bfloat16, got int8", or "ok".
  std::string to_string() const;

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

Status invalid_argument(std::string message);
Status out_of_range(std::string message);
Status unsupported(std::string message);
Status not_found(std::string message);
Status data_loss(std::string message);
Status resource_exhausted(std::string message);
Status internal_error(std::string message);

// Either a value or an error Status. value() may be called only when ok().
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}          // NOLINT(google-explicit-constructor): `return value;`
  Result(Status status) : status_(std::move(status)) {}  // NOLINT(google-explicit-constructor): `return error;`

  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }
  T& value() & { return *value_; }
  const T& value() const& { return *value_; }
  T&& value() && { return *std::move(value_); }
  T& operator*() & { return *value_; }
  T&& operator*() && { return *std::move(value_); }
  const T& operator*() const& { return *value_; }
  T* operator->() { return &*value_; }
  const T* operator->() const { return &*value_; }

 private:
  std::optional<T> value_;
  Status status_;
};

}  // namespace quire

#define QUIRE_CONCAT_INNER(a, b) a##b
#define QUIRE_CONCAT(a, b) QUIRE_CONCAT_INNER(a, b)

// Returns the Status of `expr` from the enclosing function if it is an error.
#define QUIRE_RETURN_IF_ERROR(expr)                                  \
  do {                                                               \
    if (::quire::Status quire_status = (expr); !quire_status.ok()) { \
      return quire_status;                                           \
    }                                                                \
  } while (false)

// Declares or assigns `lhs` from a Result, or returns its error from the enclosing function.
#define QUIRE_ASSIGN_OR_RETURN(lhs, expr) QUIRE_ASSIGN_OR_RETURN_IMPL(QUIRE_CONCAT(quire_result_, __LINE__), lhs, expr)
#define QUIRE_ASSIGN_OR_RETURN_IMPL(result, lhs, expr) \
  auto result = (expr);                                \
  if (!result.ok()) return result.status();            \
  lhs = std::move(result).value()
