// The tables of tile instances, one a multiplied dtype and element width.
#pragma once

#include <array>

#include "cuda/kernel/tile.h"

namespace quire::cuda {

using TileInstances = std::array<TileKernel, 7>;

const TileInstances& tile_instances_bf16();
const TileInstances& tile_instances_f16();
const TileInstances& tile_instances_bf16_narrow();
const TileInstances& tile_instances_f16_narrow();

}  // namespace quire::cuda
