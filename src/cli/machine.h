// What the machine is: processor, caches, memory, operating system, GPUs, as far as the system's files tell.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace quire::cli {

struct Machine {
  std::string os;
  std::string cpu_model;
  std::int32_t logical_cpus = 0;
  std::int64_t l1d_bytes = 0;  // of one instance; 0: unknown
  std::int64_t l2_bytes = 0;
  std::int64_t l3_bytes = 0;
  std::int64_t memory_bytes = 0;
  std::int64_t available_bytes = 0;  // what a program could take now
  std::string huge_pages;            // the transparent huge page setting
  std::string nvidia_driver;         // empty: none
  std::vector<std::string> gpus;
};

Machine read_machine();

// Ties each of `threads` OpenMP threads to a processor of its own, if the process has as many. Without it a scheduler
// may leave two threads on one processor for seconds, and half of what the machine can do is measured.
void pin_threads(int threads);

// "32.0 MiB".
std::string bytes_string(std::int64_t bytes);

}  // namespace quire::cli
