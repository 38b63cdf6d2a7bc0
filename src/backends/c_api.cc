// The C API: errors and messages, runtimes and tensors, backends, and what a layer asks of them.
#include "quire/c_api.h"

#include <string>
#include <vector>

#include "backends/c_api_handles.h"
#include "quire/cuda.h"
#include "quire/ops.h"
#include "quire/version.h"

namespace {

using quire::Status;
using namespace quire::c_api;  // NOLINT(google-build-using-namespace): the conversions are this file's vocabulary

QuireRuntime runtime_to(const quire::Runtime& from) {
  return {static_cast<std::int32_t>(from.backplane), static_cast<std::int32_t>(from.isa), from.num_threads, from.stream,
          static_cast<std::int32_t>(from.splits)};
}

}  // namespace

std::string& quire::c_api::last_error() {
  thread_local std::string message;
  return message;
}

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
    const ListOut<const QuireBackend*> out{"backends", backends, capacity, count};
    QUIRE_RETURN_IF_ERROR(out.check());
    const auto all = quire::registered_backends();
    out.write(all.size(), [&](std::size_t i) { return handle_of(all[i]); });
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

int quire_capabilities(const QuireBackend* backend, QuireCapability* rows, size_t capacity, size_t* count) {
  return guarded([&]() -> Status {
    thread_local std::vector<std::pair<std::string, std::string>> texts;
    const ListOut<QuireCapability> out{"rows", rows, capacity, count};
    QUIRE_RETURN_IF_ERROR(check_pointer(backend, "backend"));
    QUIRE_RETURN_IF_ERROR(out.check());
    texts.clear();
    for (const quire::Capability& row : quire::capability_table(backend_of(backend))) {
      texts.emplace_back(row.name, row.value);
    }
    out.write(texts.size(), [](std::size_t i) {
      return QuireCapability{texts[i].first.c_str(), texts[i].second.c_str()};
    });
    return {};
  });
}

int quire_preferred_block_size(const QuireBackend* backend, int32_t wanted, int32_t* block_size) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pointer(backend, "backend"));
    QUIRE_RETURN_IF_ERROR(check_pointer(block_size, "block_size"));
    *block_size = backend_of(backend).preferred_block_size(wanted);
    return {};
  });
}

int quire_cudagraph_support(const QuireBackend* backend, int32_t* support) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pointer(backend, "backend"));
    QUIRE_RETURN_IF_ERROR(check_pointer(support, "support"));
    *support = static_cast<std::int32_t>(backend_of(backend).cudagraph_support());
    return {};
  });
}

int quire_layer_config_init(QuireLayerConfig* config) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pointer(config, "config"));
    *config = QuireLayerConfig{};
    config->dtype = QUIRE_BFLOAT16;
    config->block_size = 16;
    config->scale = 1.0f;
    config->alibi = QUIRE_ALIBI_LINEAR;
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

int quire_merge_states_init(QuireMergeStates* args) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pointer(args, "args"));
    *args = QuireMergeStates{};
    args->prefill_tokens_with_context = -1;
    return {};
  });
}

int quire_merge_attn_states(const QuireMergeStates* args, const QuireRuntime* runtime) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pointer(args, "args"));
    QUIRE_RETURN_IF_ERROR(check_pointer(runtime, "runtime"));
    QUIRE_ASSIGN_OR_RETURN(const quire::MergeStatesArgs own, merge_args_of(*args));
    QUIRE_ASSIGN_OR_RETURN(const quire::Runtime where, runtime_of(*runtime));
    return quire::merge_attn_states(own, where);
  });
}

int quire_cuda_is_compiled(void) { return quire::cuda::is_compiled() ? 1 : 0; }

int quire_cuda_device_info(QuireDeviceInfo* info) {
  return guarded([&]() -> Status {
    QUIRE_RETURN_IF_ERROR(check_pointer(info, "info"));
    QUIRE_ASSIGN_OR_RETURN(const quire::cuda::DeviceInfo found, quire::cuda::device_info());
    *info = QuireDeviceInfo{};
    found.name.copy(info->name, sizeof(info->name) - 1);
    info->major = found.major;
    info->minor = found.minor;
    info->multiprocessors = found.multiprocessors;
    info->memory_bytes = found.memory_bytes;
    return {};
  });
}

int quire_cuda_check(void* stream) {
  return guarded([&] { return quire::cuda::check(stream); });
}

}  // extern "C"
