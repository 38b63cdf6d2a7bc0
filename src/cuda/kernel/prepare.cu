// Prepare: the units before each row tile, and what the row tiles are, for kernels whose table does not fit shared
// memory. One block; bound by latency.
#include "cuda/block/schedule.h"
#include "cuda/kernel/tile.h"
#include "cuda/ptx/dependent.h"

namespace quire::cuda {
namespace {

constexpr int kThreads = 1024;

__global__ void __launch_bounds__(kThreads) prepare_kernel(const __grid_constant__ SplitParams params) {
  static_assert(sizeof(TileRows) == kTileEntryBytes);
  __shared__ std::int32_t scratch[32];
  ptx::launch_dependents();
  const ScheduleShape& shape = params.shape;
  build_table<kThreads, true>(params.args, shape, params.table, scratch, nullptr, params.record, params.entries);
  const std::int32_t total = params.table[shape.num_entries];
  const std::int32_t room = params.shape.num_slots / params.args.kv.num_kv_heads;
  if (!shape.is_fixed() || total <= room) return;
  __syncthreads();
  if (threadIdx.x == 0) report(params.record, Fault::kWorkspace, 0, total, room);
  for (auto i = static_cast<std::int32_t>(threadIdx.x); i <= shape.num_entries; i += kThreads) params.table[i] = 0;
}

}  // namespace

Status launch_prepare(const SplitParams& params, cudaStream_t stream) {
  prepare_kernel<<<1, kThreads, 0, stream>>>(params);
  return to_status(cudaGetLastError(), "prepare_kernel");
}

}  // namespace quire::cuda
