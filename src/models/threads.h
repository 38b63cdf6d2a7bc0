// ThreadCount: OpenMP's thread count of the calling thread, for as long as a call takes. Small calls run on one thread,
// since waking others takes longer, and much longer on a machine that is busy otherwise.
#pragma once

#include <omp.h>

namespace quire {

class ThreadCount {
 public:
  explicit ThreadCount(int count) : before_(omp_get_max_threads()) { omp_set_num_threads(count); }
  ThreadCount(const ThreadCount&) = delete;
  ThreadCount& operator=(const ThreadCount&) = delete;
  ~ThreadCount() { omp_set_num_threads(before_); }

 private:
  int before_;
};

}  // namespace quire
