// DeviceCase: copies, translates, runs and fetches.
#include "gpu/device_case.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "cuda/attention.h"

namespace quire::testing {
namespace {

constexpr std::size_t kGuard = 512;
constexpr std::byte kGuardByte{0xa5};

std::size_t aligned(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

void throw_unless_ok(const Status& status) {
  if (!status.ok()) throw std::runtime_error(status.to_string());
}

}  // namespace

std::string missing_device() {
  if (!cuda::is_compiled()) return "this build has no CUDA kernels";
  const Result<cuda::DeviceInfo> device = cuda::device_info();
  return device.ok() ? "" : "no CUDA device: " + device.status().message();
}

template <class T>
void DeviceCase::translate(T*& pointer) const {
  if (pointer == nullptr) return;
  const auto* at = reinterpret_cast<const std::byte*>(pointer);
  for (const Part& part : parts_) {
    if (at < part.host.data() || at >= part.host.data() + part.host.size()) continue;
    std::byte* moved = memory_.bytes().data() + part.offset + (at - part.host.data());
    pointer = reinterpret_cast<T*>(moved);
    return;
  }
  pointer = static_cast<T*>(
      static_cast<void*>(memory_.data()));  // of an empty buffer: nothing is behind it, so it lands on a guard
}

DeviceCase::DeviceCase(AttentionCase& c, std::int32_t planned_keys) : case_(c), args_(c.args()) {
  PlanConfig config;
  config.rows_per_token = args_.num_q_heads / args_.kv.num_kv_heads;
  plan_ = make_attention_plan(config, c.query_start_loc(), c.seq_lens(), args_.variant);
  if (!plan_.items.empty()) plan_.items[0].kv_end = std::max(plan_.items[0].kv_end, planned_keys);
  std::size_t offset = kGuard;
  const auto place = [&](std::span<std::byte> host, bool is_output) {
    if (host.empty()) return;
    parts_.push_back({host, offset, is_output});
    offset += aligned(host.size()) + kGuard;
  };
  for (const auto part : c.inputs()) place(part, false);
  for (const auto part : c.outputs()) place(part, true);
  workspace_offset_ = offset;
  workspace_bytes_ = cuda::attention_workspace_bytes(args_, plan_, {.backplane = Backplane::kCuda});
  workspace_bytes_ = std::max(
      workspace_bytes_,
      cuda::attention_workspace_bytes(args_, plan_, {.backplane = Backplane::kCuda, .splits = KVSplits::kFixed}));
  const std::size_t total = offset + aligned(workspace_bytes_) + kGuard;
  Result<cuda::DeviceBuffer> memory = cuda::DeviceBuffer::allocate(total);
  throw_unless_ok(memory.status());
  memory_ = std::move(*memory);
  image_.assign(total, kGuardByte);
  for (const Part& part : parts_) std::memcpy(image_.data() + part.offset, part.host.data(), part.host.size());
  std::fill_n(image_.begin() + static_cast<std::ptrdiff_t>(workspace_offset_), workspace_bytes_, std::byte{0xff});
  throw_unless_ok(cuda::copy_to_device(memory_.data(), image_.data(), total, nullptr));
  translate(args_.query);
  translate(args_.output);
  translate(args_.output_block_scale);
  translate(args_.lse);
  translate(args_.query_start_loc);
  translate(args_.seq_lens);
  translate(args_.kv.block_table);
  translate(args_.kv.kv_start);
  for (int stream = 0; stream < args_.kv.num_streams; ++stream) {
    for (KVRows* rows : {&args_.kv.key[stream], &args_.kv.value[stream]}) {
      translate(rows->data);
      translate(rows->scales);
    }
  }
  Variant& variant = args_.variant;
  translate(variant.alibi_slopes);
  translate(variant.sinks);
  translate(variant.causal_per_seq);
  translate(variant.mm_prefix_ranges);
  translate(variant.tree.size);
  translate(variant.tree.mask_offset);
  translate(variant.tree.mask);
  translate(variant.tree.bias_offset);
  translate(variant.tree.bias);
  translate(args_.differential.subln_weight);
}

Status DeviceCase::launch(const Runtime& runtime) {
  return cuda::attention(args_, plan_, runtime, memory_.bytes().subspan(workspace_offset_, workspace_bytes_));
}

Status DeviceCase::fetch(const Runtime& runtime) {
  fetched_.resize(image_.size());
  QUIRE_RETURN_IF_ERROR(cuda::copy_to_host(fetched_.data(), memory_.data(), fetched_.size(), runtime.stream));
  for (const Part& part : parts_) {
    if (part.is_output) std::memcpy(part.host.data(), fetched_.data() + part.offset, part.host.size());
  }
  return cuda::check(runtime.stream);
}

Status DeviceCase::run(const Runtime& runtime) {
  QUIRE_RETURN_IF_ERROR(launch(runtime));
  return fetch(runtime);
}

bool DeviceCase::are_guards_intact() const {
  std::vector<std::byte> seen = fetched_;
  const auto forget = [&](std::size_t offset, std::size_t bytes) {
    std::memcpy(seen.data() + offset, image_.data() + offset, bytes);
  };
  for (const Part& part : parts_) forget(part.offset, part.host.size());
  forget(workspace_offset_, workspace_bytes_);
  return seen == image_;
}

bool DeviceCase::is_memory_intact() const {
  for (const Part& part : parts_) {
    const bool same = part.is_output || std::equal(part.host.begin(), part.host.end(),
                                                   fetched_.begin() + static_cast<std::ptrdiff_t>(part.offset));
    if (!same) return false;
  }
  return are_guards_intact() && case_.is_memory_intact();
}

}  // namespace quire::testing
