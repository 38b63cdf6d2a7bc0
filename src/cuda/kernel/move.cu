// Moves blocks and tokens of caches, and resets scales: one launch for up to kMovesOfLaunch moves of any layout.
//
// Cost: every byte of the units is read and written once. Bound by memory, or by the bus where a side is pinned memory
// of the host, which is read and written in place. A thread has one place inside a unit and takes it through all moves
// of a chain in order, so that a unit may be read before and after it is overwritten without a barrier.
#include <algorithm>
#include <string>

#include "core/checked.h"
#include "cuda/context.h"
#include "cuda/kernel/move.h"

namespace quire::cuda {
namespace {

constexpr unsigned kMoveThreads = 256;

__device__ inline std::int64_t unit_offset(const MoveRows& rows, std::int64_t unit, std::int64_t unit_tokens) {
  if (unit_tokens == 1) return unit * rows.page;
  return unit / unit_tokens * rows.page + unit % unit_tokens * rows.token;
}

// Some of a piece's words through all moves of the chain `blockIdx.x`.
template <class Word>
__device__ void move_words(const MoveParams& params, const MovePiece& piece) {
  const auto words = static_cast<std::uint32_t>(piece.row_bytes) / static_cast<std::uint32_t>(sizeof(Word));
  const auto num_inner = static_cast<std::uint32_t>(params.num_inner);
  const std::uint32_t total = words * num_inner * static_cast<std::uint32_t>(params.num_outer);
  for (std::uint32_t i = blockIdx.z * kMoveThreads + threadIdx.x; i < total; i += gridDim.z * kMoveThreads) {
    const std::uint32_t row = i / words;
    const std::int64_t outer = row / num_inner;
    const std::int64_t inner = row % num_inner;
    const std::uint32_t word = i % words * static_cast<std::uint32_t>(sizeof(Word));
    const std::byte* from = piece.from.data + outer * piece.from.outer + inner * piece.from.inner + word;
    std::byte* to = piece.to.data + outer * piece.to.outer + inner * piece.to.inner + word;
    Word saved{};
    for (int m = params.first[blockIdx.x]; m < params.first[blockIdx.x + 1]; ++m) {
      const UnitMove& move = params.moves[m];
      const Word value =
          move.source == kSavedUnit
              ? saved
              : *reinterpret_cast<const Word*>(from + unit_offset(piece.from, move.source, params.unit_tokens));
      if (move.destination == kSavedUnit) {
        saved = value;
      } else {
        *reinterpret_cast<Word*>(to + unit_offset(piece.to, move.destination, params.unit_tokens)) = value;
      }
    }
  }
}

// Blocks: x a chain, y a piece, z some of the words of a unit.
__global__ void __launch_bounds__(kMoveThreads) move_kernel(const __grid_constant__ MoveParams params) {
  const MovePiece& piece = params.pieces[blockIdx.y];
  if (piece.word_bytes == 16) {
    move_words<uint4>(params, piece);
  } else if (piece.word_bytes == 4) {
    move_words<std::uint32_t>(params, piece);
  } else {
    move_words<std::uint8_t>(params, piece);
  }
}

__global__ void __launch_bounds__(kMoveThreads) reset_kernel(const __grid_constant__ KVSource cache) {
  const KVRows& rows = blockIdx.y % 2 == 0 ? cache.key[blockIdx.y / 2] : cache.value[blockIdx.y / 2];
  const std::int64_t total = cache.num_blocks * cache.block_size * cache.num_kv_heads;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kMoveThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kMoveThreads + threadIdx.x; i < total; i += step) {
    const std::int64_t slot = i / cache.num_kv_heads;
    rows.scales[slot / cache.block_size * rows.scale_page_stride + slot % cache.block_size * rows.scale_token_stride +
                i % cache.num_kv_heads * rows.scale_head_stride] = 1.0f;
  }
}

}  // namespace

Status launch_move(const MoveParams& params, cudaStream_t stream) {
  if (params.num_chains == 0 || params.num_pieces == 0) return {};
  std::int64_t words = 1;
  for (int i = 0; i < params.num_pieces; ++i) {
    const MovePiece& piece = params.pieces[i];
    const auto rows = static_cast<std::int64_t>(params.num_outer) * params.num_inner;
    words = std::max(words, piece.row_bytes / piece.word_bytes * rows);
  }
  if (words > 0x7fffffff) return unsupported("cache: want fewer than 2^31 words a block, got " + std::to_string(words));
  const dim3 grid(static_cast<unsigned>(params.num_chains), static_cast<unsigned>(params.num_pieces),
                  static_cast<unsigned>(std::min<std::int64_t>(ceil_div(words, kMoveThreads), 64)));
  move_kernel<<<grid, kMoveThreads, 0, stream>>>(params);
  return to_status(cudaGetLastError(), "move_kernel");
}

Status launch_reset_scales(const KVSource& cache, cudaStream_t stream) {
  const std::int64_t total = cache.num_blocks * cache.block_size * cache.num_kv_heads;
  if (total == 0) return {};
  const dim3 grid(static_cast<unsigned>(std::min<std::int64_t>(ceil_div(total, kMoveThreads), 4096)),
                  static_cast<unsigned>(2 * cache.num_streams));
  reset_kernel<<<grid, kMoveThreads, 0, stream>>>(cache);
  return to_status(cudaGetLastError(), "reset_kernel");
}

}  // namespace quire::cuda
