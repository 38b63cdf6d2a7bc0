// The CUDA entries of a build without nvcc: each says so.
#include <cstddef>

#include "cuda/attention.h"
#include "cuda/timing.h"
#include "quire/cuda.h"

namespace quire::cuda {
namespace {

Status absent() { return unsupported("CUDA: this build has no CUDA kernels (it was configured without nvcc >= 12.4)"); }

}  // namespace

bool is_compiled() { return false; }
Result<DeviceInfo> device_info() { return absent(); }
Status check(void*) { return absent(); }
Status synchronize(void*) { return absent(); }
template <MemoryKind kKind>
Result<Buffer<kKind>> Buffer<kKind>::allocate(std::size_t) {
  return absent();
}
template <MemoryKind kKind>
Buffer<kKind>::~Buffer() = default;
template class Buffer<MemoryKind::kDevice>;
template class Buffer<MemoryKind::kPinnedHost>;
Status copy_to_device(void*, const void*, std::size_t, void*) { return absent(); }
Status copy_to_host(void*, const void*, std::size_t, void*) { return absent(); }
Status fill(void*, unsigned char, std::size_t, void*) { return absent(); }

Status reshape_and_cache_flash(const TensorView&, const TensorView&, const KVSource&, const TensorView&, void*) {
  return absent();
}
Status rope_and_cache_flash(const RopeArgs&, const TensorView&, const TensorView&, const KVSource&, const TensorView&,
                            void*) {
  return absent();
}
Status swap_blocks(const KVSource&, const KVSource&, std::span<const BlockPair>, void*) { return absent(); }
Status copy_blocks(std::span<const KVSource>, std::span<const BlockPair>, void*) { return absent(); }
Status move_tokens(std::span<const KVSource>, std::span<const SlotPair>, void*) { return absent(); }
Status reset_kv_scales(const KVSource&, void*) { return absent(); }

Result<Stream> Stream::create() { return absent(); }
Stream::~Stream() = default;
Result<CapturedGraph> CapturedGraph::capture(void*, const std::function<Status()>&) { return absent(); }
CapturedGraph::~CapturedGraph() = default;
Status CapturedGraph::replay(void*) const { return absent(); }
Result<std::vector<double>> time_graph(void*, const std::function<Status()>&, const TimingPolicy&) { return absent(); }
Result<double> time_copy(void*, std::int64_t, const TimingPolicy&) { return absent(); }
Result<DeviceCeilings> measure_ceilings(void*) { return absent(); }
Status read_through(const void*, std::size_t, void*) { return absent(); }

Status check_available() { return absent(); }
std::size_t attention_workspace_bytes(const AttentionArgs&, const AttentionPlan&, const Runtime&) { return 0; }
Status attention(const AttentionArgs&, const AttentionPlan&, const Runtime&, std::span<std::byte>) { return absent(); }
Status fill_with_zeros(const TensorView&, const Runtime&) { return absent(); }
Status shift_prefix_lse(const AttentionArgs&, std::int32_t, const TensorView&, const Runtime&) { return absent(); }
Status merge_attn_states(const MergeStatesArgs&, const Runtime&) { return absent(); }

}  // namespace quire::cuda
