// The C API: structs to C++ values, errors to codes and the thread's message, and no exception across the border.
#include "quire/c_api.h"

#include <algorithm>
#include <new>
#include <string>

#include "backends/c_api_convert.h"
#include "quire/backend.h"
#include "quire/version.h"

// A handle is the object itself, or holds what the object refers to.
struct QuireBuilder {
  std::unique_ptr<quire::AttentionMetadataBuilder> builder;
};
struct QuireMetadata {
  quire::AttentionMetadata metadata;
};
struct QuireImpl {
  std::unique_ptr<quire::AttentionImpl> impl;
};

namespace {

using quire::Status;
using namespace quire::c_api;  // NOLINT(google-build-using-namespace): the conversions are this file's vocabulary

std::string& last_error() {
  thread_local std::string message;
  return message;
}

// Runs a function that returns a Status and hands its outcome to C.
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

const quire::AttentionBackend& backend_of(const QuireBackend* backend) {
  return *reinterpret_cast<const quire::AttentionBackend*>(backend);
}
const QuireBackend* handle_of(const quire::AttentionBackend* backend) {
  return reinterpret_cast<const QuireBackend*>(backend);
}

QuireRuntime runtime_to(const quire::Runtime& from) {
  return {static_cast<std::int32_t>(from.backplane), static_cast<std::int32_t>(from.isa), from.num_threads,
          from.stream};
}

// Calls make(common), which returns a Result<AttentionMetadata>, and hands the metadata out.
template <class Make>
int build_with(QuireBuilder* builder, const QuireBatch* batch, QuireMetadata** metadata, Make&& make) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pointer(builder, "builder"));
    QUIRE_RETURN_IF_ERROR(check_pointer(batch, "batch"));
    QUIRE_RETURN_IF_ERROR(check_pointer(metadata, "metadata"));
    QUIRE_ASSIGN_OR_RETURN(const quire::CommonAttentionMetadata common, batch_of(*batch));
    QUIRE_ASSIGN_OR_RETURN(quire::AttentionMetadata made, make(*builder->builder, common));
    *metadata = new QuireMetadata{std::move(made)};
    return {};
  });
}

// The checks that functions of a backend and a layer share.
Status check_pair(const QuireBackend* backend, const QuireLayerConfig* config) {
  QUIRE_RETURN_IF_ERROR(check_pointer(backend, "backend"));
  return check_pointer(config, "config");
}

}  // namespace

extern "C" {

const char* quire_version(void) { return quire::version(); }
const char* quire_last_error(void) { return last_error().c_str(); }

int quire_default_runtime(QuireRuntime* runtime) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pointer(runtime, "runtime"));
    QUIRE_ASSIGN_OR_RETURN(const quire::Runtime best, quire::default_runtime());
    *runtime = runtime_to(best);
    return {};
  });
}

int quire_tensor_init(QuireTensor* tensor, void* data, int32_t dtype, const int64_t* shape, int32_t rank) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pointer(tensor, "tensor"));
    if (rank > 0) QUIRE_RETURN_IF_ERROR(check_pointer(shape, "shape"));
    if (rank < 0 || rank > quire::kMaxRank) {
      return quire::invalid_argument("rank: want 0 to 8, got " + std::to_string(rank));
    }
    QUIRE_ASSIGN_OR_RETURN(const quire::DType element, enum_of(dtype, quire::DType::kInt64, "dtype"));
    quire::TensorView view{.data = data, .dtype = element, .rank = rank};
    std::int64_t stride = 1;
    for (int dim = rank - 1; dim >= 0; --dim) {
      const auto at = static_cast<std::size_t>(dim);
      view.shape[at] = shape[dim];
      view.strides[at] = stride;
      if (shape[dim] < 0 || __builtin_mul_overflow(stride, shape[dim], &stride)) {
        return quire::invalid_argument("shape: want sizes >= 0 whose product fits 63 bits, got " +
                                       std::to_string(shape[dim]) + " in dimension " + std::to_string(dim));
      }
    }
    tensor_to(view, *tensor);
    return {};
  });
}

int quire_backends(const QuireBackend** backends, size_t capacity, size_t* count) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pointer(count, "count"));
    if (capacity > 0) QUIRE_RETURN_IF_ERROR(check_pointer(backends, "backends"));
    const auto all = quire::registered_backends();
    for (std::size_t i = 0; i < std::min(capacity, all.size()); ++i) backends[i] = handle_of(all[i]);
    *count = all.size();
    return {};
  });
}

int quire_find_backend(const char* name, const QuireBackend** backend) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pointer(name, "name"));
    QUIRE_RETURN_IF_ERROR(check_pointer(backend, "backend"));
    QUIRE_ASSIGN_OR_RETURN(const quire::AttentionBackend* found, quire::find_backend(name));
    *backend = handle_of(found);
    return {};
  });
}

const char* quire_backend_name(const QuireBackend* backend) {
  thread_local std::string name;
  if (backend == nullptr) return nullptr;
  name = backend_of(backend).name();
  return name.c_str();
}

int quire_layer_config_init(QuireLayerConfig* config) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pointer(config, "config"));
    *config = QuireLayerConfig{};
    config->dtype = QUIRE_BFLOAT16;
    config->block_size = 16;
    config->scale = 1.0f;
    config->subln_eps = 1e-5f;
    QUIRE_ASSIGN_OR_RETURN(const quire::Runtime best, quire::default_runtime());
    config->runtime = runtime_to(best);
    return {};
  });
}

int quire_validate(const QuireBackend* backend, const QuireLayerConfig* config) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pair(backend, config));
    QUIRE_ASSIGN_OR_RETURN(const quire::AttentionConfig own, attention_config_of(*config));
    std::string reasons;
    for (const std::string& reason : backend_of(backend).validate_configuration(own)) {
      reasons += (reasons.empty() ? "" : "; ") + reason;
    }
    return reasons.empty() ? Status{} : quire::unsupported(std::string(backend_of(backend).name()) + ": " + reasons);
  });
}

int quire_select_backend(const QuireLayerConfig* config, const char* name, const QuireBackend** backend) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pointer(config, "config"));
    QUIRE_RETURN_IF_ERROR(check_pointer(backend, "backend"));
    QUIRE_ASSIGN_OR_RETURN(const quire::AttentionConfig own, attention_config_of(*config));
    QUIRE_ASSIGN_OR_RETURN(const quire::BackendSelection taken,
                           quire::select_backend(own, name == nullptr ? "" : name));
    *backend = handle_of(taken.backend);
    return {};
  });
}

int quire_kv_cache_bytes(const QuireBackend* backend, const QuireLayerConfig* config, int64_t* bytes) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pair(backend, config));
    QUIRE_RETURN_IF_ERROR(check_pointer(bytes, "bytes"));
    QUIRE_ASSIGN_OR_RETURN(const quire::KVCacheSpec spec, cache_spec_of(backend_of(backend), *config));
    QUIRE_ASSIGN_OR_RETURN(*bytes, quire::kv_cache_bytes(spec));
    return {};
  });
}

int quire_view_kv_cache(const QuireBackend* backend, const QuireLayerConfig* config, void* data, QuireTensor* cache) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pair(backend, config));
    QUIRE_RETURN_IF_ERROR(check_pointer(cache, "cache"));
    QUIRE_ASSIGN_OR_RETURN(const quire::KVCacheSpec spec, cache_spec_of(backend_of(backend), *config));
    QUIRE_ASSIGN_OR_RETURN(const quire::TensorView view, quire::view_kv_cache(spec, data));
    tensor_to(view, *cache);
    return {};
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

int quire_build(QuireBuilder* builder, const QuireBatch* batch, QuireMetadata** metadata) {
  return build_with(builder, batch, metadata, [](auto& own, const auto& common) { return own.build(0, common); });
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
    QUIRE_ASSIGN_OR_RETURN(const quire::CommonAttentionMetadata common, batch_of(*batch));
    return builder->builder->update_for_cudagraph_replay(captured->metadata, common);
  });
}

void quire_metadata_destroy(QuireMetadata* metadata) { delete metadata; }

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
    *scales = {1.0f, 1.0f, 1.0f};
    return {};
  });
}

int quire_kv_cache_update(const QuireImpl* impl, const QuireScales* scales, const QuireTensor* key,
                          const QuireTensor* value, const QuireTensor* kv_cache, const QuireTensor* slot_mapping) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pointer(impl, "impl"));
    QUIRE_ASSIGN_OR_RETURN(const quire::TensorView keys, tensor_of(key, "key"));
    QUIRE_ASSIGN_OR_RETURN(const quire::TensorView values, tensor_of(value, "value"));
    QUIRE_ASSIGN_OR_RETURN(const quire::TensorView cache, tensor_of(kv_cache, "kv_cache"));
    QUIRE_ASSIGN_OR_RETURN(const quire::TensorView slots, tensor_of(slot_mapping, "slot_mapping"));
    return impl->impl->do_kv_cache_update(layer_of(scales), keys, values, cache, slots);
  });
}

int quire_workspace_bytes(const QuireImpl* impl, const QuireMetadata* metadata, int32_t block_scales, size_t* bytes) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pointer(impl, "impl"));
    QUIRE_RETURN_IF_ERROR(check_pointer(metadata, "metadata"));
    QUIRE_RETURN_IF_ERROR(check_pointer(bytes, "bytes"));
    const auto scales = block_scales != 0 ? quire::OutputScales::kBlocks : quire::OutputScales::kNoneOrOne;
    *bytes = impl->impl->workspace_bytes(metadata->metadata, scales);
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
    own.metadata = metadata == nullptr ? nullptr : &metadata->metadata;
    return impl->impl->forward(layer_of(scales), own);
  });
}

}  // extern "C"
