// From the structs of the C API to C++ values, and tensors back.
#pragma once

#include <string>
#include <string_view>

#include "quire/backend.h"
#include "quire/c_api.h"

namespace quire::c_api {

Status check_pointer(const void* pointer, std::string_view name);

// An enumerator from C, which may be any number.
template <class Enum>
Result<Enum> enum_of(std::int32_t value, Enum last, std::string_view name) {
  if (value >= 0 && value <= static_cast<std::int32_t>(last)) return static_cast<Enum>(value);
  return invalid_argument(std::string(name) + ": want 0 to " + std::to_string(static_cast<int>(last)) + ", got " +
                          std::to_string(value));
}

Result<TensorView> tensor_of(const QuireTensor* from, std::string_view name);
void tensor_to(const TensorView& view, QuireTensor& to);
Result<Runtime> runtime_of(const QuireRuntime& from);
// Spans and arrays of the results are the caller's.
Result<ImplConfig> impl_config_of(const QuireLayerConfig& from);
Result<BuilderConfig> builder_config_of(const QuireLayerConfig& from);
Result<AttentionConfig> attention_config_of(const QuireLayerConfig& from);
Result<KVCacheSpec> cache_spec_of(const AttentionBackend& backend, const QuireLayerConfig& from);
Result<CommonAttentionMetadata> batch_of(const QuireBatch& from);
AttentionLayer layer_of(const QuireScales* scales);
Result<ForwardArgs> forward_args_of(const QuireForward& from);

}  // namespace quire::c_api
