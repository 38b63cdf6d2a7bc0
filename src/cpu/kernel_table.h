// What an ISA's object offers to the rest of the library, and the plain structs that travel to it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quire/attention.h"
#include "quire/runtime.h"
#include "variant/at.h"

namespace quire::cpu {

// Keys are packed and folded in tiles of this many positions, at multiples of it.
inline constexpr std::int32_t kTileKeys = 64;
// Value columns of a stream are padded with zeros to a multiple of this many, whatever the ISA.
inline constexpr std::int32_t kColumnPad = 16;
// Rows of a chunk, over all its streams and kv_heads; items with more rows run in several chunks.
inline constexpr std::int32_t kMaxChunkRows = 256;
// kv_heads of a chunk.
inline constexpr std::int32_t kMaxChunkHeads = 16;
// States of a kv_head's rows start at multiples of this many rows.
inline constexpr std::int32_t kRowPad = 16;

// What the two matrix products multiply: float32, or pairs of bfloat16 that are accumulated in float32.
enum class Compute : std::uint8_t { kFloat32, kBFloat16 };

// Sizes of one call. A dword is one float32 or one pair of bfloat16.
struct Call {
  const AttentionArgs* args = nullptr;
  Compute compute = Compute::kFloat32;
  std::int32_t group_size = 1;    // rows of a token, stream and kv_head
  std::int32_t query_dwords = 0;  // of a packed query row; the pairs of an odd head_size end in a zero
  std::int32_t value_pad = 0;     // head_size_v rounded up to kColumnPad
  std::int32_t columns = 0;       // num_streams * value_pad
  std::int32_t weight_sets = 1;   // 2 where the streams' values have row scales of their own
  float* block_rows = nullptr;    // [num_tokens, num_q_heads, head_size_v] for outputs with block scales, else null
};

// Online softmax of some rows: the largest logit in units of log2, the sum of weights, the weighted values [columns].
struct RowState {
  float* largest = nullptr;
  float* sum = nullptr;
  float* values = nullptr;
};

// Scratch of one thread. Arrays start at multiples of 64 bytes.
struct Scratch {
  float* query = nullptr;         // [rows, query_dwords]
  float* keys[2] = {};            // a stream: [query_dwords rounded up to 16, kTileKeys]
  float* values = nullptr;        // [kTileKeys / elements a dword, columns]
  float* clean_values = nullptr;  // `values` with the keys of some rows zeroed
  float* weights[2] = {};         // [rows, kTileKeys / elements a dword]
  float* logits = nullptr;        // [micro-kernel rows, kTileKeys]
  float* rescale = nullptr;       // [rows]
  float* tile_largest = nullptr;  // [rows]
  float* tile_sum = nullptr;      // [rows]
  std::uint64_t* kept = nullptr;  // [rows] keys of the tile that the row keeps
  float* key_scales[2] = {};      // [kTileKeys]
  float* value_scales[2] = {};    // [kTileKeys]
  float* row = nullptr;           // [2, columns] rows on their way to the output
  RowState current;
  RowState total;
};

// Some rows of one sequence and some neighbouring kv_heads against keys. Row r of a stream is token r / group_size,
// head r % group_size of the group. Few rows take several kv_heads tile by tile, so that memory is read in long runs.
struct Chunk {
  std::int32_t seq = 0;
  std::int32_t kv_head = 0;  // the first
  std::int32_t num_heads = 1;
  std::int32_t first_row = 0;  // inside the sequence
  std::int32_t num_rows = 0;   // a stream
  std::int32_t context_len = 0;
  KeyRange keys{};              // that any row sees
  KeyRange interior{};          // that every row sees
  const Chunk* next = nullptr;  // what this thread attends afterwards: its first tile is fetched during the last one
};

// The states that splits of a chunk's rows left behind. Row i of stream s of the chunk's kv_head h is at
// first + h * head_rows + s * stream_rows + i.
struct Partial {
  RowState state;
  std::int64_t first = 0;
  std::int64_t head_rows = 0;
  std::int64_t stream_rows = 0;
};

// One tile's keys or values: addresses of rows at their first element, null outside [begin, end).
struct TileRows {
  const void* row[kTileKeys] = {};
  std::int32_t begin = 0;
  std::int32_t end = 0;
};

// Rows that will be needed soon, fetched into the second-level cache some lines at a time while the kernels work: of
// each array, runs of `lines` cache lines that start at the rows' addresses; once a kv_head, or once for all of them
// where they lie side by side.
struct PrefetchQueue {
  const TileRows* arrays[4] = {};
  std::int64_t head_bytes[4] = {};
  std::int32_t lines[4] = {};
  std::int32_t num_arrays = 0;
  std::int32_t num_heads = 0;
  // Where the queue stands.
  const char* next = nullptr;
  std::int32_t left = 0;  // lines of the run
  std::int32_t array = 0;
  std::int32_t head = 0;
  std::int32_t key = 0;
};

struct PackTask {
  DType storage = DType::kFloat32;
  Compute compute = Compute::kFloat32;
  std::int32_t size = 0;  // elements of a row
  const TileRows* rows = nullptr;
  std::int64_t offset = 0;            // bytes from each address to the row that is meant
  PrefetchQueue* prefetch = nullptr;  // served meanwhile; may be null
  float* out = nullptr;
  std::int64_t out_stride = 0;  // dwords; values only: keys always have kTileKeys
};

// Dot products straight from the rows of a whole tile of keys, for few rows of queries: out [num_rows, kTileKeys]. A
// row is a multiple of 32 bytes.
struct DotTask {
  PackTask keys;
  const float* query = nullptr;
  std::int64_t query_stride = 0;
  std::int32_t num_rows = 0;
};

// Weighted values straight from their rows, for few rows of weights: out = out * rescale + weights * values. The
// whole tile is there, and `size` is a multiple of 64.
struct DirectTask {
  PackTask values;  // `out` and `out_stride` are the sums'
  const float* weights = nullptr;
  const float* rescale = nullptr;
  std::int32_t num_rows = 0;
};

// out[m][n] = sum over k of a[m][k] * b[k][n], over dwords; `accumulate` adds it to out[m][n] * rescale[m].
struct GemmTask {
  Compute compute = Compute::kFloat32;
  const float* a = nullptr;
  std::int64_t a_stride = 0;
  const float* b = nullptr;
  std::int64_t b_stride = 0;
  float* out = nullptr;
  std::int64_t out_stride = 0;
  std::int32_t rows = 0;
  std::int32_t steps = 0;          // dwords of k
  std::int32_t columns = 0;        // rounded up to the lanes of the ISA
  const float* rescale = nullptr;  // [rows], or null: out is overwritten
};

// The functions of one ISA. Those below `quantize_blocks` are its building blocks, for tests and micro benchmarks.
struct KernelTable {
  bool has_bf16 = false;  // Compute::kBFloat16 is there
  // Attends a chunk and writes its outputs, or leaves its state in `partial` where that has one.
  void (*attend)(const Call& call, const Chunk& chunk, const Scratch& scratch, const Partial& partial) = nullptr;
  // Folds `count` partials, `step` rows apart, in ascending order and writes the chunk's outputs.
  void (*merge)(const Call& call, const Chunk& chunk, const Scratch& scratch, const Partial& first, std::int64_t step,
                std::int32_t count) = nullptr;
  // Quantises one token's row of call.block_rows in groups of 128.
  void (*quantize_blocks)(const Call& call, std::int64_t token) = nullptr;
  void (*pack_keys)(const PackTask& task) = nullptr;
  void (*pack_values)(const PackTask& task) = nullptr;
  void (*gemm)(const GemmTask& task) = nullptr;
  void (*exp2)(const float* in, float* out, std::int32_t count) = nullptr;  // count: a multiple of 16
  void (*tanh)(const float* in, float* out, std::int32_t count) = nullptr;
  void (*log)(const float* in, float* out, std::int32_t count) = nullptr;
};

// What keys and values may be stored as, by what is multiplied; codec() in kernel/codec.inl.h has a case for each.
inline constexpr DType kFloat32Storage[] = {DType::kFloat32,    DType::kFloat16,    DType::kBFloat16,
                                            DType::kFloat8E4M3, DType::kFloat8E5M2, DType::kInt8};
inline constexpr DType kBFloat16Storage[] = {DType::kBFloat16, DType::kFloat8E4M3, DType::kFloat8E5M2, DType::kInt8};

// Whether this build has the ISA's object, whatever the processor.
bool is_compiled(Isa isa);
// The kernels of an ISA, or null where this build or this processor lacks it.
const KernelTable* kernel_table(Isa isa);

}  // namespace quire::cpu
