// A row's batch on the device: random queries and cache, blocks in random order, and what an attention call takes.
#pragma once

#include <utility>
#include <vector>

#include "gpu/bench/work.h"
#include "quire/attention.h"
#include "quire/cuda.h"
#include "quire/plan.h"

namespace quire::bench {

class Batch {
 public:
  static Result<Batch> make(const Work& work, void* stream);

  // One call, for graphs.
  Status run() const;
  // Bytes that must move: each visible key and value once, queries and outputs.
  double bytes() const { return bytes_; }
  double flops() const { return flops_; }

 private:
  // Device memory that lives as long as the batch.
  Result<void*> keep(std::size_t bytes);
  template <class T>
  Result<T*> upload(const std::vector<T>& values);
  Status make_cache(const Work& work);
  Status make_metadata(const Work& work);
  Status make_rows(const Work& work);
  Status make_terms(const Work& work);
  Status make_plan(const Work& work);
  void count(const Work& work);

  std::vector<cuda::DeviceBuffer> owned_;
  std::vector<std::int32_t> starts_ = {0};
  std::int64_t num_blocks_ = 1;
  std::int64_t width_ = 1;  // of the block table
  AttentionArgs args_;
  AttentionPlan plan_;
  Runtime runtime_;
  std::span<std::byte> workspace_;
  double bytes_ = 0.0;
  double flops_ = 0.0;
};

}  // namespace quire::bench
