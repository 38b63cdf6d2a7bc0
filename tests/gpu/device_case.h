// Runs an AttentionCase on the device: its buffers are copied into one guarded allocation, its arguments translated.
#pragma once

#include <string>

#include "quire/cuda.h"
#include "quire/runtime.h"
#include "support/attention_case.h"

namespace quire::testing {

inline constexpr Device kDevice{DeviceType::kCuda, 0};

// Null where a test can run; otherwise why not, for GTEST_SKIP.
std::string missing_device();

// The device's copy of a case.
class DeviceCase {
 public:
  // The plan is that of a batch whose first request has `planned_keys` keys, if it has fewer.
  explicit DeviceCase(AttentionCase& c, std::int32_t planned_keys = 0);

  // Arguments that point into device memory.
  AttentionArgs& args() { return args_; }
  // Runs attention with a plan of the host's lengths and copies the outputs back into the case.
  Status run(const Runtime& runtime);
  Status launch(const Runtime& runtime);
  Status fetch(const Runtime& runtime);
  // No byte between the buffers has changed.
  bool are_guards_intact() const;
  // No guard byte and no input byte has changed.
  bool is_memory_intact() const;

 private:
  template <class T>
  void translate(T*& pointer) const;

  struct Part {
    std::span<std::byte> host;
    std::size_t offset = 0;
    bool is_output = false;
  };
  AttentionCase& case_;
  AttentionArgs args_;
  AttentionPlan plan_;
  std::vector<Part> parts_;
  std::vector<std::byte> image_;  // the allocation as it was sent, and as it came back
  std::vector<std::byte> fetched_;
  cuda::DeviceBuffer memory_;
  std::size_t workspace_offset_ = 0;
  std::size_t workspace_bytes_ = 0;
};

}  // namespace quire::testing
