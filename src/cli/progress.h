// Progress: one line on the terminal that says how far long work is; nothing where the error stream is no terminal.
#pragma once

#include <cstddef>
#include <string>

namespace quire::cli {

class Progress {
 public:
  Progress(std::string what, std::size_t total);
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress();  // clears the line

  // Shows that the next of `total` steps begins.
  void step(const std::string& name);

 private:
  std::string what_;
  std::size_t total_;
  std::size_t done_ = 0;
  bool terminal_;
};

}  // namespace quire::cli
