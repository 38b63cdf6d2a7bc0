// Makes and keeps one Context a device.
#include "cuda/context.h"

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <new>
#include <string>

namespace quire::cuda {
namespace {

constexpr int kMaxDevices = 64;

struct Registry {
  std::mutex mutex;
  std::array<std::atomic<const Context*>, kMaxDevices> contexts{};
};

Registry& registry() {
  static Registry instance;
  return instance;
}

Result<const Context*> make_context(int device) {
  auto made = std::make_unique<Context>();
  made->device = device;
  const auto read = [&](cudaDeviceAttr attribute, int& value) {
    return to_status(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  };
  QUIRE_RETURN_IF_ERROR(read(cudaDevAttrComputeCapabilityMajor, made->major));
  QUIRE_RETURN_IF_ERROR(read(cudaDevAttrComputeCapabilityMinor, made->minor));
  QUIRE_RETURN_IF_ERROR(read(cudaDevAttrMultiProcessorCount, made->multiprocessors));
  QUIRE_RETURN_IF_ERROR(read(cudaDevAttrMaxSharedMemoryPerBlockOptin, made->shared_bytes));
  QUIRE_RETURN_IF_ERROR(read(cudaDevAttrMaxSharedMemoryPerMultiprocessor, made->shared_bytes_all));
  if (made->major < 8) {
    return unsupported("CUDA device " + std::to_string(device) + ": want compute capability >= 8.0, got " +
                       std::to_string(made->major) + "." + std::to_string(made->minor));
  }
  void* record = nullptr;
  QUIRE_CUDA_RETURN_IF_ERROR(cudaHostAlloc(&record, sizeof(FaultRecord), cudaHostAllocMapped | cudaHostAllocPortable));
  made->record = new (record) FaultRecord();
  void* mapped = nullptr;
  QUIRE_CUDA_RETURN_IF_ERROR(cudaHostGetDevicePointer(&mapped, record, 0));
  made->record_device = static_cast<FaultRecord*>(mapped);
  return static_cast<const Context*>(made.release());
}

std::string fault_message(const FaultRecord& record) {
  const std::string at = "[" + std::to_string(record.index) + "]";
  const std::string got = ", got " + std::to_string(record.got);
  const std::string limit = std::to_string(record.limit);
  switch (static_cast<Fault>(record.fault)) {
    case Fault::kQueryStart:
      return "query_start_loc" + at + ": want monotone starts in [0, " + limit + "]" + got;
    case Fault::kQueryLen:
      return "query_start_loc" + at + ": want at most " + limit + " tokens, as many as the plan was made for" + got;
    case Fault::kSeqLen:
      return "seq_lens" + at + ": want [0, " + limit + "] keys, as many as the block table holds" + got;
    case Fault::kBlock:
      return "block_table" + at + ": want block ids in [0, " + limit + ")" + got;
    case Fault::kSlot:
      return "slot_mapping" + at + ": want a slot below " + limit + got;
    case Fault::kPosition:
      return "positions" + at + ": want a position in [0, " + limit + ")" + got;
    case Fault::kWorkspace:
      return "seq_lens: want lengths that the plan was made for (" + limit + " splits), got " +
             std::to_string(record.got) + " splits on the device";
    case Fault::kNone:
    case Fault::kWriting:
      break;
  }
  return "a fault of an unknown kind";
}

}  // namespace

Status to_status(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return {};
  const std::string message = std::string(what) + ": " + cudaGetErrorString(error);
  if (error == cudaErrorMemoryAllocation) return resource_exhausted(message);
  if (error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver) return unsupported(message);
  return internal_error(message);
}

Result<const Context*> context() {
  int device = 0;
  QUIRE_CUDA_RETURN_IF_ERROR(cudaGetDevice(&device));
  if (device >= kMaxDevices) return unsupported("CUDA device " + std::to_string(device) + ": want one below 64");
  std::atomic<const Context*>& slot = registry().contexts[static_cast<std::size_t>(device)];
  if (const Context* known = slot.load(std::memory_order_acquire)) return known;
  const std::lock_guard<std::mutex> lock(registry().mutex);
  if (const Context* known = slot.load(std::memory_order_acquire)) return known;
  QUIRE_ASSIGN_OR_RETURN(const Context* made, make_context(device));
  slot.store(made, std::memory_order_release);
  return made;
}

Status take_fault(const Context& context) {
  volatile std::uint32_t* fault = &context.record->fault;
  const std::uint32_t seen = *fault;
  if (seen == static_cast<std::uint32_t>(Fault::kNone) || seen == static_cast<std::uint32_t>(Fault::kWriting))
    return {};
  std::atomic_thread_fence(std::memory_order_acquire);
  const FaultRecord record = *context.record;
  *fault = static_cast<std::uint32_t>(Fault::kNone);
  return out_of_range(fault_message(record));
}

}  // namespace quire::cuda
