// Reads the machine's description from /proc and /sys; what is not there stays empty.
#include "cli/machine.h"

#include <omp.h>
#include <sched.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "cli/table.h"

namespace quire::cli {
namespace {

std::string read_line(const std::filesystem::path& path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line;
}

std::string trim(const std::string& text) {
  const std::size_t first = text.find_first_not_of(" \t");
  if (first == std::string::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t") - first + 1);
}

// The value of the first line "KEY : VALUE" in a file of such lines.
std::string value_of(const std::filesystem::path& path, const std::string& key) {
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    const std::size_t colon = line.find(':');
    if (colon != std::string::npos && trim(line.substr(0, colon)) == key) return trim(line.substr(colon + 1));
  }
  return {};
}

std::int64_t kibibytes(const std::string& text) {
  std::istringstream in(text);
  std::int64_t value = 0;
  in >> value;
  return in ? value * 1024 : 0;
}

std::int64_t cache_bytes(int level) {
  const std::filesystem::path folder = "/sys/devices/system/cpu/cpu0/cache";
  for (int index = 0; index < 8; ++index) {
    const std::filesystem::path cache = folder / ("index" + std::to_string(index));
    if (read_line(cache / "level") != std::to_string(level) || read_line(cache / "type") == "Instruction") continue;
    const std::string size = read_line(cache / "size");
    return kibibytes(size) * (size.ends_with('M') ? 1024 : 1);
  }
  return 0;
}

std::vector<std::string> nvidia_gpus() {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/driver/nvidia/gpus", error)) {
    names.push_back(value_of(entry.path() / "information", "Model"));
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

Machine read_machine() {
  Machine out;
  utsname system{};
  if (uname(&system) == 0) {
    out.os = std::string(system.sysname) + " " + system.release + " " + system.machine;
  }
  out.cpu_model = value_of("/proc/cpuinfo", "model name");
  out.logical_cpus = static_cast<std::int32_t>(sysconf(_SC_NPROCESSORS_ONLN));
  out.l1d_bytes = cache_bytes(1);
  out.l2_bytes = cache_bytes(2);
  out.l3_bytes = cache_bytes(3);
  out.memory_bytes = kibibytes(value_of("/proc/meminfo", "MemTotal"));
  out.available_bytes = kibibytes(value_of("/proc/meminfo", "MemAvailable"));
  out.huge_pages = read_line("/sys/kernel/mm/transparent_hugepage/enabled");
  out.nvidia_driver = value_of("/proc/driver/nvidia/version", "NVRM version");
  out.gpus = nvidia_gpus();
  return out;
}

void pin_threads(int threads) {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0 || CPU_COUNT(&allowed) < threads) return;
  std::vector<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &allowed)) cpus.push_back(cpu);
  }
#pragma omp parallel num_threads(threads)
  {
    cpu_set_t mine;
    CPU_ZERO(&mine);
    CPU_SET(cpus[static_cast<std::size_t>(omp_get_thread_num())], &mine);
    sched_setaffinity(0, sizeof(mine), &mine);
  }
}

std::string bytes_string(std::int64_t bytes) {
  static constexpr std::array kUnits = {"bytes", "KiB", "MiB", "GiB", "TiB"};
  if (bytes < 1024) return std::to_string(bytes) + " bytes";
  double value = static_cast<double>(bytes);
  std::size_t unit = 0;
  for (; value >= 1024 && unit + 1 < kUnits.size(); ++unit) value /= 1024;
  return fixed(value, 1) + " " + kUnits[unit];
}

}  // namespace quire::cli
