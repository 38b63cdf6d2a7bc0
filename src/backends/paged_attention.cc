// paged_attention: checks the arguments and hands them to the backplane's kernels.
#include <string>

#include "backends/attention_args.h"
#include "cpu/attention.h"
#include "cuda/attention.h"
#include "quire/ops.h"
#include "reference/attention.h"

namespace quire {

Status check_backplane(const Runtime& runtime) {
  switch (runtime.backplane) {
    case Backplane::kReference:
      return {};
    case Backplane::kCpu:
      for (const Isa isa : available_isas()) {
        if (isa == runtime.isa) return {};
      }
      return unsupported("runtime.isa: " + std::string(isa_name(runtime.isa)) +
                         " is not available in this build and on this processor");
    case Backplane::kCuda:
      return cuda::check_available();
  }
  return invalid_argument("runtime.backplane: want reference, cpu or cuda, got " +
                          std::to_string(static_cast<int>(runtime.backplane)));
}

std::size_t attention_workspace_bytes(const AttentionArgs& args, const AttentionPlan& plan, const Runtime& runtime) {
  if (runtime.backplane == Backplane::kCuda) {
    return backends::check_counts(args).ok() ? cuda::attention_workspace_bytes(args, plan, runtime) : 0;
  }
  if (runtime.backplane != Backplane::kCpu) return 0;
  return cpu::attention_workspace_bytes(args, plan, runtime);
}

Status paged_attention(const AttentionArgs& args, const AttentionPlan& plan, const Runtime& runtime,
                       std::span<std::byte> workspace) {
  if (runtime.backplane == Backplane::kCuda) {
    QUIRE_RETURN_IF_ERROR(backends::check_device_args(args));
    return cuda::attention(args, plan, runtime, workspace);
  }
  QUIRE_RETURN_IF_ERROR(backends::check_attention_args(args));
  switch (runtime.backplane) {
    case Backplane::kReference:
      if (args.num_tokens > 0) reference::attention(args);
      return {};
    case Backplane::kCpu:
      QUIRE_RETURN_IF_ERROR(backends::check_plan(args, plan));
      return args.num_tokens > 0 ? cpu::attention(args, plan, runtime, workspace) : Status{};
    case Backplane::kCuda:
      break;
  }
  return check_backplane(runtime);
}

}  // namespace quire
