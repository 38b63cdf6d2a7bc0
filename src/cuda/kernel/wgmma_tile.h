// Parameters of the tile kernel on wgmma, and the tables of its instances.
#pragma once

#include <cuda.h>

#include <array>

#include "cuda/kernel/tile.h"

namespace quire::cuda {

struct WgmmaParams {
  // [blocks, tokens of a block / 8, columns of 64 elements of all heads, 8 tokens, 64 elements], read in boxes of
  // box_keys rows of a head; differential attention: [blocks, tokens of a block / 8, streams, 8 tokens, elements of all
  // heads], boxes of both streams.
  CUtensorMap keys;
  CUtensorMap values;
  // [streams, columns of 64 elements, tokens, q_heads of a stream, 64 elements], read in boxes of a row tile's column.
  CUtensorMap queries;
  SplitParams split;
  std::int32_t box_keys = 0;        // divides the block size
  std::int32_t head_columns_k = 0;  // from a head to the next
  std::int32_t head_columns_v = 0;
};

using WgmmaInstances = std::array<TileKernel, 5>;
using WgmmaPairInstances = std::array<TileKernel, 2>;

const WgmmaInstances& wgmma_instances_bf16();
const WgmmaInstances& wgmma_instances_f16();
const WgmmaPairInstances& wgmma_pair_instances();

}  // namespace quire::cuda
