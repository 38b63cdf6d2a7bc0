// Timing on a device, and what the device can do at best: for quire bench.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "quire/status.h"

namespace quire::cuda {

// Owns a stream, a cudaStream_t.
class Stream {
 public:
  static Result<Stream> create();
  Stream() = default;
  Stream(Stream&& other) noexcept : stream_(std::exchange(other.stream_, nullptr)) {}
  Stream& operator=(Stream&& other) noexcept {
    std::swap(stream_, other.stream_);
    return *this;
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream();

  void* get() const { return stream_; }

 private:
  void* stream_ = nullptr;
};

// A graph of what `work` puts on a stream, captured once and replayed at will.
class CapturedGraph {
 public:
  // `work` runs once under capture: it must neither allocate nor wait.
  static Result<CapturedGraph> capture(void* stream, const std::function<Status()>& work);
  CapturedGraph() = default;
  CapturedGraph(CapturedGraph&& other) noexcept : exec_(std::exchange(other.exec_, nullptr)) {}
  CapturedGraph& operator=(CapturedGraph&& other) noexcept {
    std::swap(exec_, other.exec_);
    return *this;
  }
  CapturedGraph(const CapturedGraph&) = delete;
  CapturedGraph& operator=(const CapturedGraph&) = delete;
  ~CapturedGraph();

  Status replay(void* stream) const;

 private:
  void* exec_ = nullptr;
};

// What the L2 cache holds when timed work begins: lines that are written back while the work runs, or lines that were
// only read.
enum class Flush : std::uint8_t { kWritten, kRead };

struct TimingPolicy {
  double min_seconds = 0.1;  // replays go on until so much time was measured,
  std::int32_t min_repeats = 5;
  std::int32_t max_repeats = 200;
  // Products draw so much power that the clocks fall, and stay low for a tenth of a second: what is bound by memory is
  // 10 % slower then. So timings start with a rest.
  double rest_seconds = 0.2;
  Flush flush = Flush::kWritten;
};

// Seconds of each replay of a graph of `work`, by events, with four times the L2 cache written (and as much read then,
// for Flush::kRead) before each.
Result<std::vector<double>> time_graph(void* stream, const std::function<Status()>& work, const TimingPolicy& policy);

// Seconds that a copy kernel takes for `bytes` read and written together, timed as work is: the median.
Result<double> time_copy(void* stream, std::int64_t bytes, const TimingPolicy& policy);

// Reads `bytes` of device memory and does nothing with them.
Status read_through(const void* data, std::size_t bytes, void* stream);

struct DeviceCeilings {
  double read_bytes = 0.0;      // a second, read only
  double copy_bytes = 0.0;      // a second, read and written together
  double half_flops = 0.0;      // bfloat16 products with float32 sums on tensor cores
  double float32_flops = 0.0;   // multiply-adds outside of them
  double launch_seconds = 0.0;  // a graph of one empty kernel
};
// Takes about a second and 8 GiB, or a third of the device's memory if that is less.
Result<DeviceCeilings> measure_ceilings(void* stream);

}  // namespace quire::cuda
