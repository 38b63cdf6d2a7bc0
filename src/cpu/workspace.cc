// Counts and lays out the scratch memory of one attention call.
#include "cpu/workspace.h"

#include <limits>

#include "core/checked.h"

namespace quire::cpu {
namespace {

constexpr std::int64_t kPieceAlign = 64;

// Hands out arrays at multiples of 64 bytes and counts; a sum that overflows sticks at the largest size.
class Arena {
 public:
  explicit Arena(std::byte* base) : base_(base) {}

  template <class T>
  T* take(std::int64_t rows, std::int64_t columns) {
    const auto bytes = checked_product({rows, columns, static_cast<std::int64_t>(sizeof(T))});
    const auto padded = bytes ? checked_add(*bytes, kPieceAlign) : std::nullopt;
    const auto next = padded ? checked_add(used_, *padded / kPieceAlign * kPieceAlign) : std::nullopt;
    T* start = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    if (!next) overflowed_ = true;
    if (next) used_ = *next;
    return start;
  }
  std::size_t bytes() const {
    return overflowed_ ? std::numeric_limits<std::size_t>::max() : static_cast<std::size_t>(used_);
  }

 private:
  std::byte* base_ = nullptr;
  std::int64_t used_ = 0;
  bool overflowed_ = false;
};

}  // namespace

ThreadScratch::ThreadScratch(const WorkspaceShape& shape, std::byte* base) {
  const Call& call = shape.call;
  const KVSource& kv = call.args->kv;
  const std::int64_t rows = round_up(static_cast<std::int64_t>(shape.chunk_rows) * kv.num_streams, kRowPad);
  const std::int64_t all_rows = rows * shape.chunk_heads;
  const std::int64_t tile_dwords = call.compute == Compute::kFloat32 ? kTileKeys : kTileKeys / 2;
  constexpr std::int64_t kLogitRows = 8;  // at least the rows of any ISA's register tile
  Arena arena(base);
  scratch.query = arena.take<float>(all_rows, call.query_dwords);
  for (std::int32_t s = 0; s < kv.num_streams; ++s) {
    scratch.keys[s] = arena.take<float>(round_up(call.query_dwords, kColumnPad), kTileKeys);
  }
  scratch.values = arena.take<float>(tile_dwords, call.columns);
  scratch.clean_values = arena.take<float>(tile_dwords, call.columns);
  for (std::int32_t s = 0; s < call.weight_sets; ++s) scratch.weights[s] = arena.take<float>(rows, tile_dwords);
  scratch.logits = arena.take<float>(kLogitRows, kTileKeys);
  scratch.rescale = arena.take<float>(rows, 1);
  scratch.tile_largest = arena.take<float>(rows, 1);
  scratch.tile_sum = arena.take<float>(rows, 1);
  scratch.kept = arena.take<std::uint64_t>(rows, 1);
  for (std::int32_t s = 0; s < kv.num_streams; ++s) {
    scratch.key_scales[s] = arena.take<float>(kTileKeys, 1);
    scratch.value_scales[s] = arena.take<float>(kTileKeys, 1);
  }
  scratch.row = arena.take<float>(2, call.columns);
  for (RowState* state : {&scratch.current, &scratch.total}) {
    state->largest = arena.take<float>(all_rows, 1);
    state->sum = arena.take<float>(all_rows, 1);
    state->values = arena.take<float>(all_rows, call.columns);
  }
  bytes = arena.bytes();
}

Workspace::Workspace(const WorkspaceShape& shape, std::byte* base) {
  const AttentionArgs& args = *shape.call.args;
  Arena arena(base);
  partial_largest = arena.take<float>(shape.partial_rows, 1);
  partial_sum = arena.take<float>(shape.partial_rows, 1);
  partial_values = arena.take<float>(shape.partial_rows, shape.call.columns);
  if (args.output_block_scale != nullptr) {
    block_rows = arena.take<float>(args.num_tokens, static_cast<std::int64_t>(args.num_q_heads) * args.kv.head_size_v);
  }
  thread_bytes = ThreadScratch(shape, nullptr).bytes;
  if (thread_bytes > static_cast<std::size_t>(std::numeric_limits<std::int64_t>::max())) {
    total_bytes = thread_bytes;
    return;
  }
  threads = arena.take<std::byte>(shape.num_threads, static_cast<std::int64_t>(thread_bytes));
  total_bytes = arena.bytes();
}

}  // namespace quire::cpu
