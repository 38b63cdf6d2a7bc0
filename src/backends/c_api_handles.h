// What the files of the C API share: the objects behind its handles, and the way from a Status to a code and the
// thread's message.
#pragma once

#include <algorithm>
#include <memory>
#include <new>
#include <string>

#include "backends/c_api_convert.h"
#include "quire/backend.h"
#include "quire/c_api.h"

// Backends and metadata have no struct of their own: their handles are the addresses of the C++ objects, so that the
// parts of a metadata, which it owns, have handles too.
struct QuireBuilder {
  std::unique_ptr<quire::AttentionMetadataBuilder> builder;
};
struct QuireImpl {
  std::unique_ptr<quire::AttentionImpl> impl;
};

namespace quire::c_api {

// The message of the thread's last error.
std::string& last_error();

// Runs a function that returns a Status and hands its outcome to C; no exception crosses the border.
template <class Function>
int guarded(Function&& function) noexcept {
  try {
    const Status status = function();
    last_error() = status.message();
    return static_cast<int>(status.code());
  } catch (const std::bad_alloc&) {
    last_error().clear();  // no memory for a message either
    return QUIRE_RESOURCE_EXHAUSTED;
  } catch (...) {
    last_error().clear();
    return QUIRE_INTERNAL;
  }
}

inline const AttentionBackend& backend_of(const QuireBackend* backend) {
  return *reinterpret_cast<const AttentionBackend*>(backend);
}
inline const QuireBackend* handle_of(const AttentionBackend* backend) {
  return reinterpret_cast<const QuireBackend*>(backend);
}
inline const AttentionMetadata* metadata_of(const QuireMetadata* metadata) {
  return reinterpret_cast<const AttentionMetadata*>(metadata);
}
inline const QuireMetadata* handle_of(const AttentionMetadata* metadata) {
  return reinterpret_cast<const QuireMetadata*>(metadata);
}

// The checks that functions of a backend and a layer share.
inline Status check_pair(const QuireBackend* backend, const QuireLayerConfig* config) {
  QUIRE_RETURN_IF_ERROR(check_pointer(backend, "backend"));
  return check_pointer(config, "config");
}

// Where a function writes a list: an array that has room for `capacity` elements, and how many there are.
template <class To>
struct ListOut {
  std::string_view name;
  To* data = nullptr;
  std::size_t capacity = 0;
  std::size_t* count = nullptr;

  Status check() const {
    QUIRE_RETURN_IF_ERROR(check_pointer(count, "count"));
    return capacity == 0 ? Status{} : check_pointer(data, name);
  }
  // Hands out `total` elements; element(i) makes one.
  template <class Element>
  void write(std::size_t total, Element&& element) const {
    for (std::size_t i = 0; i < std::min(capacity, total); ++i) data[i] = element(i);
    *count = total;
  }
};

}  // namespace quire::c_api
