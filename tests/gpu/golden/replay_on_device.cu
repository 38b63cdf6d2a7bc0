// Replays the golden cases with attention on the device: `replay_on_device CASE...`. It stands in for the library's
// paged_attention, which the reference backplane of the layers calls with host memory: everything the arguments point
// to is copied to the device, the CUDA kernels run, the output is copied back. Exit status 0 only if all pass.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <vector>

#include "cli/replay/replay_case.h"
#include "cuda/attention.h"
#include "quire/cuda.h"
#include "quire/ops.h"

namespace quire {
namespace {

void require(const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.to_string().c_str());
  std::exit(1);
}

// Copies of host ranges; ranges that overlap, as K and V of one cache do, become one.
class Mirror {
 public:
  void add(const void* data, std::int64_t bytes) {
    const auto* begin = static_cast<const std::byte*>(data);
    if (begin != nullptr && bytes > 0) ranges_.push_back({begin, begin + bytes, {}});
  }
  void send() {
    std::sort(ranges_.begin(), ranges_.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
    std::vector<Range> merged;
    for (Range& range : ranges_) {
      if (!merged.empty() && range.begin < merged.back().end) {
        merged.back().end = std::max(merged.back().end, range.end);
      } else {
        merged.push_back(std::move(range));
      }
    }
    ranges_ = std::move(merged);
    for (Range& range : ranges_) {
      const auto bytes = static_cast<std::size_t>(range.end - range.begin);
      Result<cuda::DeviceBuffer> buffer = cuda::DeviceBuffer::allocate(bytes);
      require(buffer.status());
      range.device = std::move(*buffer);
      require(cuda::copy_to_device(range.device.data(), range.begin, bytes, nullptr));
    }
  }
  template <class T>
  void translate(T*& pointer) const {
    if (pointer != nullptr) pointer = static_cast<T*>(const_cast<void*>(device_of(pointer)));
  }
  void fetch(void* host, std::int64_t bytes) const {
    require(cuda::copy_to_host(host, device_of(host), static_cast<std::size_t>(bytes), nullptr));
  }

 private:
  struct Range {
    const std::byte* begin;
    const std::byte* end;
    cuda::DeviceBuffer device;
  };
  const void* device_of(const void* host) const {
    const auto* at = static_cast<const std::byte*>(host);
    for (const Range& range : ranges_) {
      if (at >= range.begin && at < range.end) return static_cast<std::byte*>(range.device.data()) + (at - range.begin);
    }
    require(internal_error("a pointer of the arguments is in no range"));
    return nullptr;
  }
  std::vector<Range> ranges_;
};

std::int64_t output_bytes(const AttentionArgs& args) {
  return ((args.num_tokens - 1) * args.output_token_stride + (args.num_q_heads - 1) * args.output_head_stride +
          args.kv.head_size_v) *
         dtype_bytes(args.output_dtype);
}

void add_cache(Mirror& mirror, const AttentionArgs& args) {
  const KVSource& kv = args.kv;
  const std::int64_t pages = kv.block_table != nullptr ? kv.num_blocks : 1;
  const std::int64_t tokens = kv.block_table != nullptr ? kv.block_size : args.num_tokens;
  const auto extent = [&](std::int64_t page, std::int64_t token, std::int64_t head, std::int64_t size) {
    return (pages - 1) * page + (tokens - 1) * token + (kv.num_kv_heads - 1) * head + size;
  };
  for (int stream = 0; stream < kv.num_streams; ++stream) {
    for (const KVRows* rows : {&kv.key[stream], &kv.value[stream]}) {
      const std::int64_t size = rows == &kv.key[stream] ? kv.head_size : kv.head_size_v;
      mirror.add(rows->data,
                 extent(rows->page_stride, rows->token_stride, rows->head_stride, size) * dtype_bytes(kv.dtype));
      mirror.add(rows->scales,
                 extent(rows->scale_page_stride, rows->scale_token_stride, rows->scale_head_stride, 1) * 4);
    }
  }
}

void add_terms(Mirror& mirror, const Variant& variant, std::int64_t seqs, std::int64_t heads) {
  mirror.add(variant.alibi_slopes, heads * 4);
  mirror.add(variant.sinks, heads * 4);
  mirror.add(variant.causal_per_seq, seqs);
  mirror.add(variant.mm_prefix_ranges, seqs * variant.mm_prefix_max_ranges * 8);
  const TreeTerms& tree = variant.tree;
  if (tree.size == nullptr) return;
  mirror.add(tree.size, seqs * 4);
  mirror.add(tree.mask_offset, seqs * 8);
  if (tree.bias != nullptr) mirror.add(tree.bias_offset, seqs * 8);
  for (std::int64_t seq = 0; seq < seqs; ++seq) {
    const std::int64_t size = tree.size[seq];
    mirror.add(tree.mask, (tree.mask_offset[seq] + size * ((size + 63) / 64)) * 8);
    if (tree.bias != nullptr) mirror.add(tree.bias, (tree.bias_offset[seq] + size * size) * 4);
  }
}

void translate(const Mirror& mirror, AttentionArgs& args) {
  mirror.translate(args.query);
  mirror.translate(args.output);
  mirror.translate(args.query_start_loc);
  mirror.translate(args.seq_lens);
  mirror.translate(args.kv.block_table);
  mirror.translate(args.kv.kv_start);
  for (int stream = 0; stream < args.kv.num_streams; ++stream) {
    for (KVRows* rows : {&args.kv.key[stream], &args.kv.value[stream]}) {
      mirror.translate(rows->data);
      mirror.translate(rows->scales);
    }
  }
  mirror.translate(args.variant.alibi_slopes);
  mirror.translate(args.variant.sinks);
  mirror.translate(args.variant.causal_per_seq);
  mirror.translate(args.variant.mm_prefix_ranges);
  mirror.translate(args.variant.tree.size);
  mirror.translate(args.variant.tree.mask_offset);
  mirror.translate(args.variant.tree.mask);
  mirror.translate(args.variant.tree.bias_offset);
  mirror.translate(args.variant.tree.bias);
  mirror.translate(args.differential.subln_weight);
}

}  // namespace

Status check_backplane(const Runtime&) { return {}; }
std::size_t attention_workspace_bytes(const AttentionArgs&, const AttentionPlan&, const Runtime&) { return 0; }

Status paged_attention(const AttentionArgs& host, const AttentionPlan& plan, const Runtime&, std::span<std::byte>) {
  Mirror mirror;
  const std::int64_t query = (host.num_tokens - 1) * host.query_token_stride +
                             (host.num_q_heads - 1) * host.query_head_stride + host.kv.head_size;
  mirror.add(host.query, query * dtype_bytes(host.query_dtype));
  mirror.add(host.output, output_bytes(host));
  mirror.add(host.query_start_loc, (host.num_seqs + 1) * 4);
  mirror.add(host.seq_lens, host.num_seqs * 4);
  mirror.add(host.kv.block_table, host.kv.block_table_stride * host.num_seqs * 4);
  mirror.add(host.kv.kv_start, host.num_seqs * 4);
  mirror.add(host.differential.subln_weight, 2 * host.kv.head_size_v * 4);
  add_cache(mirror, host);
  add_terms(mirror, host.variant, host.num_seqs, host.num_q_heads);
  mirror.send();
  AttentionArgs args = host;
  translate(mirror, args);
  const Runtime runtime{.backplane = Backplane::kCuda};
  Result<cuda::DeviceBuffer> workspace =
      cuda::DeviceBuffer::allocate(cuda::attention_workspace_bytes(args, plan, runtime));
  QUIRE_RETURN_IF_ERROR(workspace.status());
  QUIRE_RETURN_IF_ERROR(cuda::attention(args, plan, runtime, workspace->bytes()));
  QUIRE_RETURN_IF_ERROR(cuda::check(nullptr));
  mirror.fetch(host.output, output_bytes(host));
  return {};
}

}  // namespace quire

int main(int argc, char** argv) {
  using namespace quire;
  int failed = 0;
  for (int i = 1; i < argc; ++i) {
    const Result<AttentionCase> file = read_attention_case(argv[i]);
    require(file.status());
    for (const std::optional<KVCacheLayout> layout :
         {std::optional<KVCacheLayout>(), std::optional(KVCacheLayout::kHND)}) {
      const cli::ReplayOptions options{.runtime = {.backplane = Backplane::kReference}, .layout = layout};
      const cli::ReplayVerdict verdict = cli::replay_case(*file, options);
      if (verdict.passed) continue;
      std::printf("%s: %s\n", argv[i], verdict.complaint.c_str());
      ++failed;
      break;
    }
  }
  std::printf("golden cases on the device: %d passed, %d failed\n", argc - 1 - failed, failed);
  return failed == 0 ? 0 : 1;
}
