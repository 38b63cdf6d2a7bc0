// The tile kernel's compiled instances, the kernel that prepares its schedule, and their launch.
#pragma once

#include "cuda/context.h"
#include "cuda/kernel/split.h"

namespace quire::cuda {

constexpr int kTileEntryBytes = 40;  // a TileRows

// What selects an instance: the multiplied dtype, bytes of a stored element, sizes and streams.
struct TileKey {
  DType dtype = DType::kBFloat16;
  std::int32_t element_bytes = 2;
  std::int32_t head_size = 0;
  std::int32_t head_size_v = 0;
  std::int32_t num_streams = 1;
  friend bool operator==(const TileKey&, const TileKey&) = default;
};

struct TileKernel {
  TileKey key;
  const void* function = nullptr;
  int threads = 128;
  int shared_bytes = 0;
  int static_bytes = 2048;  // shared memory besides, at most
  int blocks = 1;           // a multiprocessor, as registers allow
  int rows = 0;             // of a tile, all streams
  int keys = kTileKeys;     // of a unit of work
  bool uses_wgmma = false;
};

// Null if there is no such instance.
const TileKernel* find_tile_kernel(const TileKey& key);

// The same for the kernel on wgmma and bulk copies, which takes fewer configurations (suits_wgmma).
const TileKernel* find_wgmma_kernel(const TileKey& key);
bool suits_wgmma(const AttentionArgs& args);

// Writes params.table on the device, then runs the tiles; the grid is params.shape.num_groups groups of a block a kv
// head.
Status launch_tile(const TileKernel& kernel, const SplitParams& params, cudaStream_t stream);
Status launch_wgmma(const TileKernel& kernel, const SplitParams& params, cudaStream_t stream);
Status launch_prepare(const SplitParams& params, cudaStream_t stream);

}  // namespace quire::cuda
