// An attention call on the GPU, decided: which kernels run, how their work is cut, and where their scratch is.
#pragma once

#include <cstdint>

#include "cuda/context.h"
#include "cuda/kernel/decode.h"
#include "cuda/kernel/tile.h"
#include "quire/plan.h"
#include "quire/runtime.h"

namespace quire::cuda {

inline bool is_differential(const AttentionArgs& args) { return args.kv.num_streams == 2; }

// q_heads, or pairs of q_heads, that share a kv head.
inline std::int32_t group_size(const AttentionArgs& args) {
  return args.num_q_heads / args.kv.num_streams / args.kv.num_kv_heads;
}

// What the plan tells of the batch: bounds for the lengths that kernels find on the device.
struct BatchBounds {
  std::int32_t longest_query = 0;
  std::int32_t shortest_query = 0;   // of those that one item covers
  std::int32_t longest_small = 0;    // of those with at most kMaxDecodeRows rows
  std::int64_t num_keys = 0;         // of those requests
  std::int64_t most_keys = 0;        // of one of them
  std::int64_t num_fixed_units = 0;  // key units of kSplitTokens
};

// One split kernel's part of a call.
struct Stage {
  SplitParams split;
  std::int64_t table = 0;  // offsets in the scratch
  std::int64_t states = 0;
  std::int64_t partials = 0;
  std::int64_t entries = -1;  // none
};

// A call, decided: what runs, and where its scratch is.
struct Call {
  BatchBounds bounds;
  const DecodeKernel* decode = nullptr;
  const TileKernel* tile = nullptr;
  std::int32_t decode_rows = 0;  // requests with at most so many rows are the decode kernel's
  Stage decode_stage;
  Stage tile_stage;
  std::int64_t stream_rows = 0;  // float [num_tokens, num_q_heads, 2 * head_size_v], plain differential
  std::int64_t output_rows = 0;  // float [num_tokens, num_q_heads * head_size_v], block-scaled output
  std::int64_t bytes = 0;

  bool has_rest(const AttentionArgs& args) const {
    return decode == nullptr || static_cast<std::int64_t>(bounds.longest_query) * group_size(args) > decode_rows;
  }
  bool uses_plain(const AttentionArgs& args) const { return has_rest(args) && tile == nullptr; }
};

// Which tile kernel: the one that suits the tensors, or either one for any tensors, as the workspace may be asked for
// before they are bound.
enum class TileChoice { kForTensors, kWgmma, kMma };
// The same for the decode kernel.
enum class DecodeChoice { kForTensors, kWide, kNarrow };

// Which kernels a call may take.
struct Choice {
  DecodeChoice decode = DecodeChoice::kForTensors;
  TileChoice tile = TileChoice::kForTensors;
};

// The same for the same arguments, so that the workspace may be asked for before a call is made.
Call plan_call(const AttentionArgs& args, const AttentionPlan& plan, const Runtime& runtime, const Context& device,
               Choice choice = {});

}  // namespace quire::cuda
