// The C API's layers: token trees, metadata builders and their metadata, implementations.
#include <algorithm>
#include <string>
#include <vector>

#include "backends/c_api_handles.h"

namespace {

using quire::Status;
using namespace quire::c_api;  // NOLINT(google-build-using-namespace): the conversions are this file's vocabulary

// Hands out the tree that make() returns a Result of.
template <class Make>
int make_tree(QuireTree** tree, Make&& make) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pointer(tree, "tree"));
    QUIRE_ASSIGN_OR_RETURN(quire::TokenTree made, make());
    *tree = new QuireTree{std::move(made)};
    return {};
  });
}

// Calls make(builder, common), which returns a Result<AttentionMetadata>, and hands the metadata out.
template <class Make>
int build_with(QuireBuilder* builder, const QuireBatch* batch, QuireMetadata** metadata, Make&& make) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pointer(builder, "builder"));
    QUIRE_RETURN_IF_ERROR(check_pointer(batch, "batch"));
    QUIRE_RETURN_IF_ERROR(check_pointer(metadata, "metadata"));
    QUIRE_ASSIGN_OR_RETURN(const Batch own, batch_of(*batch));
    QUIRE_ASSIGN_OR_RETURN(quire::AttentionMetadata made, make(*builder->builder, own.common));
    *metadata = reinterpret_cast<QuireMetadata*>(new quire::AttentionMetadata(std::move(made)));
    return {};
  });
}

// Arrays that the caller lends for a level's.
Status copy_level(const quire::DraftLevel& from, QuireDraftLevel& to) {
  if (from.positions.size() > to.capacity) {
    return quire::resource_exhausted("capacity: want " + std::to_string(from.positions.size()) + " rows, got " +
                                     std::to_string(to.capacity));
  }
  std::copy(from.query_start_loc.begin(), from.query_start_loc.end(), to.query_start_loc);
  std::copy(from.seq_lens.begin(), from.seq_lens.end(), to.seq_lens);
  std::copy(from.positions.begin(), from.positions.end(), to.positions);
  std::copy(from.slot_mapping.begin(), from.slot_mapping.end(), to.slot_mapping);
  to.query_len = from.query_len;
  to.num_new_drafts = from.num_new_drafts;
  to.max_seq_len = from.max_seq_len;
  return {};
}

using Part = const quire::AttentionMetadata* (quire::AttentionMetadata::*)() const;

int part_of(const QuireMetadata* metadata, Part which, const QuireMetadata** part) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pointer(metadata, "metadata"));
    QUIRE_RETURN_IF_ERROR(check_pointer(part, "part"));
    *part = handle_of((metadata_of(metadata)->*which)());
    return {};
  });
}

}  // namespace

extern "C" {

int quire_tree_parse(const char* text, QuireTree** tree) {
  return make_tree(tree, [&]() -> quire::Result<quire::TokenTree> {
    QUIRE_RETURN_IF_ERROR(check_pointer(text, "text"));
    return quire::TokenTree::parse(text);
  });
}

int quire_tree_from_parents(const int32_t* parents, size_t count, QuireTree** tree) {
  return make_tree(tree, [&]() -> quire::Result<quire::TokenTree> {
    if (count > 0) QUIRE_RETURN_IF_ERROR(check_pointer(parents, "parents"));
    return quire::TokenTree::from_parents({parents, count});
  });
}

int quire_tree_chain(int32_t length, QuireTree** tree) {
  return make_tree(tree, [&] { return quire::TokenTree::chain(length); });
}

void quire_tree_destroy(QuireTree* tree) { delete tree; }

int quire_tree_parents(const QuireTree* tree, int32_t* parents, size_t capacity, size_t* count) {
  return guarded([&]() -> Status {
    const ListOut<std::int32_t> out{"parents", parents, capacity, count};
    QUIRE_RETURN_IF_ERROR(check_pointer(tree, "tree"));
    QUIRE_RETURN_IF_ERROR(out.check());
    out.write(static_cast<std::size_t>(tree->tree.size()) - 1,
              [&](std::size_t i) { return tree->tree.parent(static_cast<std::int32_t>(i) + 1); });
    return {};
  });
}

int quire_tree_depths(const QuireTree* tree, int32_t* depths, size_t capacity, size_t* count) {
  return guarded([&]() -> Status {
    const ListOut<std::int32_t> out{"depths", depths, capacity, count};
    QUIRE_RETURN_IF_ERROR(check_pointer(tree, "tree"));
    QUIRE_RETURN_IF_ERROR(out.check());
    out.write(static_cast<std::size_t>(tree->tree.size()),
              [&](std::size_t i) { return tree->tree.depth(static_cast<std::int32_t>(i)); });
    return {};
  });
}

int quire_make_draft_level(const QuireLayerConfig* config, QuireDraftLevel* level) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pointer(config, "config"));
    QUIRE_RETURN_IF_ERROR(check_pointer(level, "level"));
    QUIRE_ASSIGN_OR_RETURN(const quire::DraftLevelInput input, draft_input_of(*config, *level));
    QUIRE_ASSIGN_OR_RETURN(const quire::DraftLevel made, quire::make_draft_level(input));
    return copy_level(made, *level);
  });
}

int quire_builder_create(const QuireBackend* backend, const QuireLayerConfig* config, QuireBuilder** builder) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pair(backend, config));
    QUIRE_RETURN_IF_ERROR(check_pointer(builder, "builder"));
    QUIRE_ASSIGN_OR_RETURN(const quire::BuilderConfig own, builder_config_of(*config));
    QUIRE_ASSIGN_OR_RETURN(auto made, backend_of(backend).make_builder(own));
    *builder = new QuireBuilder{std::move(made)};
    return {};
  });
}

void quire_builder_destroy(QuireBuilder* builder) { delete builder; }

int quire_reorder_batch_threshold(const QuireBuilder* builder, int32_t* threshold) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pointer(builder, "builder"));
    QUIRE_RETURN_IF_ERROR(check_pointer(threshold, "threshold"));
    *threshold = builder->builder->reorder_batch_threshold();
    return {};
  });
}

int quire_reorder_batch(const QuireBuilder* builder, const QuireReorder* batch, QuireSwap* swaps, size_t capacity,
                        size_t* count) {
  return guarded([&]() -> Status {
    const ListOut<QuireSwap> out{"swaps", swaps, capacity, count};
    QUIRE_RETURN_IF_ERROR(check_pointer(builder, "builder"));
    QUIRE_RETURN_IF_ERROR(check_pointer(batch, "batch"));
    QUIRE_RETURN_IF_ERROR(out.check());
    QUIRE_ASSIGN_OR_RETURN(const quire::ReorderInput input, reorder_input_of(*batch));
    const auto found = builder->builder->reorder_batch(input);
    out.write(found.size(), [&](std::size_t i) { return QuireSwap{found[i].first, found[i].second}; });
    return {};
  });
}

int quire_batch_init(QuireBatch* batch) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pointer(batch, "batch"));
    *batch = QuireBatch{};
    return {};
  });
}

int quire_build(QuireBuilder* builder, const QuireBatch* batch, QuireMetadata** metadata) {
  return build_with(builder, batch, metadata,
                    [batch](auto& own, const auto& common) { return own.build(batch->common_prefix_len, common); });
}

int quire_build_for_drafting(QuireBuilder* builder, const QuireBatch* batch, int32_t draft_index,
                             QuireMetadata** metadata) {
  return build_with(builder, batch, metadata, [draft_index](auto& own, const auto& common) {
    return own.build_for_drafting(common, draft_index);
  });
}

int quire_build_for_cudagraph_capture(QuireBuilder* builder, const QuireBatch* batch, QuireMetadata** metadata) {
  return build_with(builder, batch, metadata,
                    [](auto& own, const auto& common) { return own.build_for_cudagraph_capture(common); });
}

int quire_update_for_cudagraph_replay(QuireBuilder* builder, const QuireMetadata* captured, const QuireBatch* batch) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pointer(builder, "builder"));
    QUIRE_RETURN_IF_ERROR(check_pointer(captured, "captured"));
    QUIRE_RETURN_IF_ERROR(check_pointer(batch, "batch"));
    QUIRE_ASSIGN_OR_RETURN(const Batch own, batch_of(*batch));
    return builder->builder->update_for_cudagraph_replay(*metadata_of(captured), own.common);
  });
}

void quire_metadata_destroy(QuireMetadata* metadata) { delete metadata_of(metadata); }

int quire_metadata_info(const QuireMetadata* metadata, QuireMetadataInfo* info) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pointer(metadata, "metadata"));
    QUIRE_RETURN_IF_ERROR(check_pointer(info, "info"));
    const quire::AttentionMetadata& from = *metadata_of(metadata);
    info->num_reqs = from.num_reqs;
    info->num_actual_tokens = from.num_actual_tokens;
    info->max_query_len = from.max_query_len;
    info->max_seq_len = from.max_seq_len;
    info->num_decodes = from.num_decodes;
    info->num_prefills = from.num_prefills;
    info->num_decode_tokens = from.num_decode_tokens;
    info->num_prefill_tokens = from.num_prefill_tokens;
    info->prefills_first = from.prefills_first ? 1 : 0;
    return {};
  });
}

int quire_prefill_metadata(const QuireMetadata* metadata, const QuireMetadata** part) {
  return part_of(metadata, &quire::AttentionMetadata::prefill_metadata, part);
}

int quire_decode_metadata(const QuireMetadata* metadata, const QuireMetadata** part) {
  return part_of(metadata, &quire::AttentionMetadata::decode_metadata, part);
}

int quire_impl_create(const QuireBackend* backend, const QuireLayerConfig* config, QuireImpl** impl) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pair(backend, config));
    QUIRE_RETURN_IF_ERROR(check_pointer(impl, "impl"));
    QUIRE_ASSIGN_OR_RETURN(const quire::ImplConfig own, impl_config_of(*config));
    QUIRE_ASSIGN_OR_RETURN(auto made, backend_of(backend).make_impl(own));
    *impl = new QuireImpl{std::move(made)};
    return {};
  });
}

void quire_impl_destroy(QuireImpl* impl) { delete impl; }

int quire_scales_init(QuireScales* scales) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pointer(scales, "scales"));
    *scales = {1.0f, 1.0f, 1.0f, nullptr, nullptr};
    return {};
  });
}

int quire_kv_cache_update(const QuireImpl* impl, const QuireScales* scales, const QuireTensor* key,
                          const QuireTensor* value, const QuireTensor* kv_cache, const QuireTensor* slot_mapping) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pointer(impl, "impl"));
    QUIRE_ASSIGN_OR_RETURN(const quire::AttentionLayer layer, layer_of(scales));
    QUIRE_ASSIGN_OR_RETURN(const quire::TensorView keys, tensor_of(key, "key"));
    QUIRE_ASSIGN_OR_RETURN(const quire::TensorView values, tensor_of(value, "value"));
    QUIRE_ASSIGN_OR_RETURN(const quire::TensorView cache, tensor_of(kv_cache, "kv_cache"));
    QUIRE_ASSIGN_OR_RETURN(const quire::TensorView slots, tensor_of(slot_mapping, "slot_mapping"));
    return impl->impl->do_kv_cache_update(layer, keys, values, cache, slots);
  });
}

int quire_rope_update_init(QuireRopeUpdate* args) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pointer(args, "args"));
    *args = QuireRopeUpdate{};
    return {};
  });
}

int quire_rope_and_kv_cache_update(const QuireImpl* impl, const QuireScales* scales, const QuireRopeUpdate* args) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pointer(impl, "impl"));
    QUIRE_RETURN_IF_ERROR(check_pointer(args, "args"));
    QUIRE_ASSIGN_OR_RETURN(const quire::AttentionLayer layer, layer_of(scales));
    QUIRE_ASSIGN_OR_RETURN(const RopeUpdate own, rope_update_of(*args));
    return impl->impl->do_rope_and_kv_cache_update(layer, own.rope, own.key, own.value, own.kv_cache, own.slot_mapping);
  });
}

int quire_workspace_bytes(const QuireImpl* impl, const QuireMetadata* metadata, int32_t block_scales, size_t* bytes) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pointer(impl, "impl"));
    QUIRE_RETURN_IF_ERROR(check_pointer(metadata, "metadata"));
    QUIRE_RETURN_IF_ERROR(check_pointer(bytes, "bytes"));
    const auto scales = block_scales != 0 ? quire::OutputScales::kBlocks : quire::OutputScales::kNoneOrOne;
    *bytes = impl->impl->workspace_bytes(*metadata_of(metadata), scales);
    return {};
  });
}

int quire_forward_init(QuireForward* args) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pointer(args, "args"));
    *args = QuireForward{};
    return {};
  });
}

int quire_forward(const QuireImpl* impl, const QuireScales* scales, const QuireMetadata* metadata,
                  const QuireForward* args) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pointer(impl, "impl"));
    QUIRE_RETURN_IF_ERROR(check_pointer(args, "args"));
    QUIRE_ASSIGN_OR_RETURN(quire::ForwardArgs own, forward_args_of(*args));
    QUIRE_ASSIGN_OR_RETURN(const quire::AttentionLayer layer, layer_of(scales));
    own.metadata = metadata_of(metadata);
    return impl->impl->forward(layer, own);
  });
}

}  // extern "C"
