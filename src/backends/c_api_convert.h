// From the structs of the C API to C++ values, and tensors back.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "quire/backend.h"
#include "quire/c_api.h"
#include "quire/ops.h"
#include "quire/tree_draft.h"

struct QuireTree {
  quire::TokenTree tree;
};

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
// A batch with the arrays that C has in other types; `common` points into them and at the caller's.
struct Batch {
  CommonAttentionMetadata common;
  std::vector<MmRange> mm_ranges;
  std::vector<const TokenTree*> trees;
};
Result<Batch> batch_of(const QuireBatch& from);
// With pointers wherever the call writes.
Result<DraftLevelInput> draft_input_of(const QuireLayerConfig& config, const QuireDraftLevel& from);
Result<ReorderInput> reorder_input_of(const QuireReorder& from);
// Null: all scales 1.
Result<AttentionLayer> layer_of(const QuireScales* scales);
struct RopeUpdate {
  RopeArgs rope;
  TensorView key;
  TensorView value;
  TensorView kv_cache;
  TensorView slot_mapping;
};
Result<RopeUpdate> rope_update_of(const QuireRopeUpdate& from);
Result<ForwardArgs> forward_args_of(const QuireForward& from);
Result<MergeStatesArgs> merge_args_of(const QuireMergeStates& from);
// Messages begin with `name`.
Result<KVSource> kv_source_of(const QuireKVCache* from, const std::string& name);

}  // namespace quire::c_api
