// How one call's scratch memory is divided: a part for each thread, the partial states, rows that wait for block
// scales.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/kernel_table.h"
#include "quire/plan.h"

namespace quire::cpu {

struct WorkspaceShape {
  Call call;
  std::int32_t chunk_rows = 0;   // most rows a stream and kv_head of a chunk
  std::int32_t chunk_heads = 1;  // most kv_heads of a chunk
  std::int32_t num_threads = 1;
  std::int64_t partial_rows = 0;  // of all slots, kv_heads and streams
};

// Where the pieces start; made by counting with `base` null, and again over real memory.
struct Workspace {
  float* partial_largest = nullptr;
  float* partial_sum = nullptr;
  float* partial_values = nullptr;
  float* block_rows = nullptr;
  std::byte* threads = nullptr;
  std::size_t thread_bytes = 0;
  std::size_t total_bytes = 0;  // SIZE_MAX where it does not fit

  Workspace(const WorkspaceShape& shape, std::byte* base);
};

// The scratch of one thread, whose part starts at `base` (a multiple of 64).
struct ThreadScratch {
  Scratch scratch;
  std::size_t bytes = 0;

  ThreadScratch(const WorkspaceShape& shape, std::byte* base);
};

}  // namespace quire::cpu
