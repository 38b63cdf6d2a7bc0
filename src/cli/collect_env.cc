// quire collect-env: what a bug report should say about the machine and the build.
#include <omp.h>

#include <cstdlib>
#include <iostream>
#include <memory>

#include "cli/command.h"
#include "cli/json.h"
#include "cli/machine.h"
#include "cli/runtime_options.h"
#include "cli/table.h"
#include "quire/runtime.h"
#include "quire/version.h"

namespace quire::cli {
namespace {

using Facts = std::vector<std::pair<std::string, std::string>>;

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

std::string build_kind() {
  std::string kind;
#if defined(NDEBUG)
  kind = "without assertions";
#else
  kind = "with assertions";
#endif
#if defined(__SANITIZE_ADDRESS__)
  kind += ", AddressSanitizer";
#endif
#if defined(__SANITIZE_THREAD__)
  kind += ", ThreadSanitizer";
#endif
  return kind;
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "not set" : value;
}

std::string default_isa_text() {
  const Result<Isa> isa = default_isa();
  return isa.ok() ? std::string(isa_name(*isa)) : isa.status().message();
}

Facts collect() {
  const Machine machine = read_machine();
  std::vector<std::string> isas;
  for (const Isa isa : available_isas()) isas.emplace_back(isa_name(isa));
  return {
      {"quire", version()},
      {"compiler", compiler()},
      {"build", build_kind()},
      {"OpenMP", std::to_string(_OPENMP) + ", " + std::to_string(omp_get_max_threads()) + " threads"},
      {"system", machine.os},
      {"processor", machine.cpu_model},
      {"logical processors", std::to_string(machine.logical_cpus)},
      {"L1d, L2, L3",
       bytes_string(machine.l1d_bytes) + ", " + bytes_string(machine.l2_bytes) + ", " + bytes_string(machine.l3_bytes)},
      {"memory", bytes_string(machine.memory_bytes) + ", " + bytes_string(machine.available_bytes) + " available"},
      {"huge pages", machine.huge_pages},
      {"instruction sets", join(isas, ", ")},
      {"default instruction set", default_isa_text()},
      {"QUIRE_ISA", environment("QUIRE_ISA")},
      {"QUIRE_KV_CACHE_LAYOUT", environment("QUIRE_KV_CACHE_LAYOUT")},
      {"VLLM_KV_CACHE_LAYOUT", environment("VLLM_KV_CACHE_LAYOUT")},
      {"OMP_NUM_THREADS", environment("OMP_NUM_THREADS")},
      {"NVIDIA driver", machine.nvidia_driver.empty() ? "none" : machine.nvidia_driver},
      {"GPUs", machine.gpus.empty() ? "none" : join(machine.gpus, ", ")},
  };
}

Result<int> run_collect_env(const std::string& format_name) {
  QUIRE_ASSIGN_OR_RETURN(const Format format, parse_format(format_name));
  const Facts facts = collect();
  if (format == Format::kJson) {
    Table table{.header = {"fact", "value"}, .rows = {}};
    for (const auto& [name, value] : facts) table.rows.push_back({name, value});
    std::cout << json_table(table);
    return kExitOk;
  }
  if (format != Format::kText) return invalid_argument("format: want text or json, got " + format_name);
  std::size_t width = 0;
  for (const auto& fact : facts) width = std::max(width, fact.first.size());
  for (const auto& [name, value] : facts) {
    std::cout << name << std::string(width - name.size() + 2, ' ') << value << '\n';
  }
  return kExitOk;
}

}  // namespace

std::function<int()> attach_collect_env(Usage& usage) {
  auto format = std::make_shared<std::string>("text");
  usage.options = {{"--format", format.get(), "text or json"}};
  return [format] {
    const Result<int> status = run_collect_env(*format);
    return status.ok() ? *status : report(status.status());
  };
}

}  // namespace quire::cli
