// Streams, graphs and their timing.
#include "cuda/timing.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "cuda/context.h"
#include "quire/cuda.h"

namespace quire::cuda {
namespace {

constexpr int kWarmUp = 2;

cudaStream_t native(void* stream) { return static_cast<cudaStream_t>(stream); }

// Two events on a stream and the time between them.
class StopWatch {
 public:
  ~StopWatch() {
    if (begin_ != nullptr) static_cast<void>(cudaEventDestroy(begin_));
    if (end_ != nullptr) static_cast<void>(cudaEventDestroy(end_));
  }
  Status create() {
    QUIRE_CUDA_RETURN_IF_ERROR(cudaEventCreate(&begin_));
    return to_status(cudaEventCreate(&end_), "cudaEventCreate");
  }
  Status start(cudaStream_t stream) { return to_status(cudaEventRecord(begin_, stream), "cudaEventRecord"); }
  Result<double> stop(cudaStream_t stream) {
    QUIRE_CUDA_RETURN_IF_ERROR(cudaEventRecord(end_, stream));
    QUIRE_CUDA_RETURN_IF_ERROR(cudaEventSynchronize(end_));
    float milliseconds = 0.0f;
    QUIRE_CUDA_RETURN_IF_ERROR(cudaEventElapsedTime(&milliseconds, begin_, end_));
    return static_cast<double>(milliseconds) * 1e-3;
  }

 private:
  cudaEvent_t begin_ = nullptr;
  cudaEvent_t end_ = nullptr;
};

Result<std::size_t> l2_bytes() {
  QUIRE_ASSIGN_OR_RETURN(const Context* device, context());
  int bytes = 0;
  QUIRE_CUDA_RETURN_IF_ERROR(cudaDeviceGetAttribute(&bytes, cudaDevAttrL2CacheSize, device->device));
  return static_cast<std::size_t>(std::max(bytes, 1 << 20));
}

}  // namespace

Result<Stream> Stream::create() {
  QUIRE_RETURN_IF_ERROR(context().status());
  cudaStream_t made = nullptr;
  QUIRE_CUDA_RETURN_IF_ERROR(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking));
  Stream stream;
  stream.stream_ = made;
  return stream;
}

Stream::~Stream() {
  if (stream_ != nullptr) static_cast<void>(cudaStreamDestroy(native(stream_)));
}

Result<CapturedGraph> CapturedGraph::capture(void* stream, const std::function<Status()>& work) {
  QUIRE_CUDA_RETURN_IF_ERROR(cudaStreamBeginCapture(native(stream), cudaStreamCaptureModeThreadLocal));
  const Status worked = work();
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(native(stream), &graph);
  CapturedGraph captured;
  Status status = worked.ok() ? to_status(ended, "cudaStreamEndCapture") : worked;
  if (status.ok()) {
    cudaGraphExec_t exec = nullptr;
    status = to_status(cudaGraphInstantiate(&exec, graph, 0), "cudaGraphInstantiate");
    captured.exec_ = exec;
  }
  if (graph != nullptr) static_cast<void>(cudaGraphDestroy(graph));
  if (!status.ok()) return status;
  return captured;
}

CapturedGraph::~CapturedGraph() {
  if (exec_ != nullptr) static_cast<void>(cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(exec_)));
}

Status CapturedGraph::replay(void* stream) const {
  return to_status(cudaGraphLaunch(static_cast<cudaGraphExec_t>(exec_), native(stream)), "cudaGraphLaunch");
}

Result<std::vector<double>> time_graph(void* stream, const std::function<Status()>& work, const TimingPolicy& policy) {
  QUIRE_RETURN_IF_ERROR(work());  // loads the kernels
  QUIRE_RETURN_IF_ERROR(check(stream));
  QUIRE_ASSIGN_OR_RETURN(const CapturedGraph graph, CapturedGraph::capture(stream, work));
  QUIRE_ASSIGN_OR_RETURN(const std::size_t cache_bytes, l2_bytes());
  QUIRE_ASSIGN_OR_RETURN(const DeviceBuffer dirt, DeviceBuffer::allocate(4 * cache_bytes));
  DeviceBuffer clean;
  if (policy.flush == Flush::kRead) {
    QUIRE_ASSIGN_OR_RETURN(clean, DeviceBuffer::allocate(4 * cache_bytes));
    QUIRE_RETURN_IF_ERROR(fill(clean.data(), 0, clean.size(), stream));
  }
  StopWatch watch;
  QUIRE_RETURN_IF_ERROR(watch.create());
  std::this_thread::sleep_for(std::chrono::duration<double>(policy.rest_seconds));
  std::vector<double> seconds;
  double total = 0.0;
  int runs = 0;
  const auto enough = [&] {
    const auto repeats = static_cast<std::int32_t>(seconds.size());
    return repeats >= policy.max_repeats || (repeats >= policy.min_repeats && total >= policy.min_seconds);
  };
  while (!enough()) {
    QUIRE_RETURN_IF_ERROR(fill(dirt.data(), static_cast<unsigned char>(runs), dirt.size(), stream));
    if (policy.flush == Flush::kRead) QUIRE_RETURN_IF_ERROR(read_through(clean.data(), clean.size(), stream));
    QUIRE_RETURN_IF_ERROR(watch.start(native(stream)));
    QUIRE_RETURN_IF_ERROR(graph.replay(stream));
    QUIRE_ASSIGN_OR_RETURN(const double elapsed, watch.stop(native(stream)));
    if (++runs <= kWarmUp) continue;
    seconds.push_back(elapsed);
    total += elapsed;
  }
  QUIRE_RETURN_IF_ERROR(check(stream));
  return seconds;
}

}  // namespace quire::cuda
