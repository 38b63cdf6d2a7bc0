// Progress on a terminal.
#include "cli/progress.h"

#include <unistd.h>

#include <iostream>
#include <utility>

namespace quire::cli {

Progress::Progress(std::string what, std::size_t total)
    : what_(std::move(what)), total_(total), terminal_(isatty(STDERR_FILENO) == 1) {}

Progress::~Progress() {
  if (terminal_) std::cerr << "\r\033[K" << std::flush;
}

void Progress::step(const std::string& name) {
  ++done_;
  if (terminal_) std::cerr << "\r\033[K" << what_ << ' ' << done_ << '/' << total_ << ' ' << name << std::flush;
}

}  // namespace quire::cli
