// The kernels that move what a cache already holds: blocks between caches or inside one, tokens, and fresh scales.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kv/store.h"
#include "quire/attention.h"
#include "quire/status.h"

namespace quire::cuda {

// Rows of one side (K or V of a stream, or their scales) of the units that move: a row of (page, token, outer, inner)
// is at data + page * page + token * token + outer * outer + inner * inner, in bytes.
struct MoveRows {
  std::byte* data = nullptr;
  std::int64_t page = 0;
  std::int64_t token = 0;
  std::int64_t outer = 0;
  std::int64_t inner = 0;
};

struct MovePiece {
  MoveRows from;
  MoveRows to;
  std::int32_t row_bytes = 0;
  std::int32_t word_bytes = 1;  // 16, 4 or 1, which divides all addresses and the row
};

// A thread's register, which breaks cycles: what one move of a chain saves, a later one stores.
constexpr std::int64_t kSavedUnit = kSpareBlock;

struct UnitMove {
  std::int64_t source = 0;
  std::int64_t destination = 0;
};

constexpr int kMovePieces = 8;  // K and V of two streams, and their scales
constexpr std::size_t kMovesOfLaunch = 128;

// Units are blocks (unit_tokens 1: unit = page) or tokens (unit_tokens = block_size). Moves are dealt into chains,
// chain c being moves [first[c], first[c + 1]): those of a chain happen in order, those of different ones touch no
// common unit.
struct MoveParams {
  MovePiece pieces[kMovePieces];
  UnitMove moves[kMovesOfLaunch];
  std::int16_t first[kMovesOfLaunch + 1] = {};
  std::int32_t num_pieces = 0;
  std::int32_t num_chains = 0;
  std::int64_t unit_tokens = 1;
  std::int32_t num_outer = 1;  // rows of a unit
  std::int32_t num_inner = 1;
};
static_assert(sizeof(MoveParams) <= 4096, "parameters of a kernel");

Status launch_move(const MoveParams& params, cudaStream_t stream);

// Sets every row scale of the cache to 1.
Status launch_reset_scales(const KVSource& cache, cudaStream_t stream);

}  // namespace quire::cuda
