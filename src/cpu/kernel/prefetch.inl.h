// Asking for the next tile's rows while this one is worked on.
//
// Cost: one instruction a cache line and a few to step. A core keeps some four dozen such misses under way. Beyond that
// they hold up the reads of this tile, and whenever there are fewer, memory idles; so the requests are spread as evenly
// as the work is, one at a time.
#pragma once

#include "cpu/kernel_table.h"

namespace quire::cpu {
namespace {

inline constexpr std::int64_t kLineBytes = 64;

// Lines that `rows` rows of `size` elements take up, rounded up.
QUIRE_INLINE std::int32_t lines_of(std::int32_t rows, std::int32_t size, DType storage) {
  return static_cast<std::int32_t>((rows * size * dtype_bytes(storage) + kLineBytes - 1) / kLineBytes);
}

// Goes to the start of the next run; false at the end.
QUIRE_INLINE bool next_run(PrefetchQueue& queue) {
  if (queue.head == queue.num_heads) return false;
  const std::int32_t array = queue.array;
  const TileRows& rows = *queue.arrays[array];
  queue.next = static_cast<const char*>(rows.row[queue.key]) + queue.head * queue.head_bytes[array];
  queue.left = queue.lines[array];
  if (++queue.key == rows.end) {
    queue.key = rows.begin;
    if (++queue.array == queue.num_arrays) {
      queue.array = 0;
      ++queue.head;
    }
  }
  return true;
}

// Asks for the next line.
QUIRE_INLINE void serve_prefetch(PrefetchQueue* queue) {
  if (queue == nullptr) return;
  if (queue->left == 0 && !next_run(*queue)) return;
  Simd::prefetch(queue->next);
  queue->next += kLineBytes;
  --queue->left;
}
QUIRE_INLINE void serve_prefetch(PrefetchQueue* queue, std::int32_t lines) {
  for (std::int32_t i = 0; i < lines; ++i) serve_prefetch(queue);
}

}  // namespace
}  // namespace quire::cpu
