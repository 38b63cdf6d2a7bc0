// quire kernels: what is compiled, and which of it can run here.
#include <iostream>
#include <memory>
#include <span>

#include "cli/command.h"
#include "cli/json.h"
#include "cli/runtime_options.h"
#include "cli/table.h"
#include "cpu/kernel_table.h"
#include "quire/cuda.h"
#include "quire/dtype.h"

namespace quire::cli {
namespace {

constexpr Isa kIsas[] = {Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16};

std::string storage_list(std::span<const DType> dtypes) {
  std::vector<std::string> names;
  for (const DType dtype : dtypes) names.emplace_back(dtype_name(dtype));
  return join(names, ", ");
}

void add_cpu_rows(Table& table) {
  for (const Isa isa : kIsas) {
    const bool compiled = cpu::is_compiled(isa);
    const std::string runs = cpu::kernel_table(isa) != nullptr ? "yes" : "no";
    const std::string name(isa_name(isa));
    if (!compiled) {
      table.rows.push_back({"cpu", name, "no", "no", "", ""});
      continue;
    }
    table.rows.push_back({"cpu", name, "yes", runs, "float32", storage_list(cpu::kFloat32Storage)});
    // Where the ISA cannot run its table cannot be asked, but its name says it.
    if (isa == Isa::kAvx512Bf16) {
      table.rows.push_back({"cpu", name, "yes", runs, "bfloat16", storage_list(cpu::kBFloat16Storage)});
    }
  }
}

void add_cuda_row(Table& table) {
#if defined(QUIRE_CUDA_ARCHITECTURES)
  const std::string architectures = QUIRE_CUDA_ARCHITECTURES;
#else
  const std::string architectures;
#endif
  const Result<cuda::DeviceInfo> device = cuda::device_info();
  table.rows.push_back({"cuda", architectures, cuda::is_compiled() ? "yes" : "no",
                        device.ok() ? "yes: " + device->name : "no", cuda::is_compiled() ? "float32" : "",
                        cuda::is_compiled() ? storage_list(cpu::kFloat32Storage) : ""});
}

Result<int> run_kernels(const std::string& format_name) {
  QUIRE_ASSIGN_OR_RETURN(const Format format, parse_format(format_name));
  Table table{.header = {"backplane", "isa", "compiled", "runs here", "products in", "keys and values stored as"},
              .rows = {}};
  table.rows.push_back({"reference", "", "yes", "yes", "float64", storage_list(cpu::kFloat32Storage)});
  add_cpu_rows(table);
  add_cuda_row(table);
  switch (format) {
    case Format::kText:
      std::cout << text_table(table);
      break;
    case Format::kMarkdown:
      std::cout << markdown_table(table);
      break;
    case Format::kCsv:
      std::cout << csv_table(table);
      break;
    case Format::kJson:
      std::cout << json_table(table);
      break;
  }
  return kExitOk;
}

}  // namespace

std::function<int()> attach_kernels(Usage& usage) {
  auto format = std::make_shared<std::string>("text");
  usage.options = {{"--format", format.get(), "text, markdown, csv or json"}};
  return [format] {
    const Result<int> status = run_kernels(*format);
    return status.ok() ? *status : report(status.status());
  };
}

}  // namespace quire::cli
