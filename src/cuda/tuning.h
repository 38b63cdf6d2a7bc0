// Tile shapes, stages and blocks of the kernels: the only place with such numbers.
#pragma once

#include <cstdint>

#include "core/macros.h"
#include "quire/dtype.h"

namespace quire::cuda {

// How a warp reads 8-bit rows from shared memory: half chunks of 16 bytes of keys and chunks of values, in an order of
// keys that spreads them over the banks; chunks; or words.
enum class RowReads : std::uint8_t { kSpread, kChunks, kWords };

// One instance of the decode kernel: kRowTiles tiles of 8 rows a stream; kKV is what the cache stores. 8-bit elements
// are multiplied as float16, others as they are.
template <DType kKVType, int kHeadSize, int kHeadSizeV, int kNumStreams, int kNumRowTiles>
struct DecodeShape {
  static constexpr DType kKV = kKVType;
  static constexpr int kD = kHeadSize;
  static constexpr int kStreams = kNumStreams;
  static constexpr int kRowTiles = kNumRowTiles;
  static constexpr int kTiles = kNumRowTiles * kNumStreams;
  static constexpr int kDv = kHeadSizeV * kNumStreams;  // of a row of results
  static constexpr int kDvPart = kHeadSizeV;            // of a row of the cache
  static constexpr int kBytes = static_cast<int>(dtype_bytes(kKVType));
  static constexpr int kWarps = 4;
  static constexpr int kKeys = 16;  // a warp's tile
  static constexpr RowReads kReads = RowReads::kSpread;

  // Rows in shared memory start at multiples of 32 bytes, the sector of a read: copies that straddle sectors cost 6 %
  // of the memory's rate. 16-bit rows of a multiple of 128 bytes are swizzled for ldmatrix (chunk ^ row % 8), other
  // ones are padded; 8-bit rows have room for 28 bytes before them and a scale behind them.
  static constexpr bool is_swizzled(int size) { return kBytes == 2 && size % 64 == 0; }
  static constexpr int pitch(int size) {
    if (kBytes == 2) return is_swizzled(size) ? 2 * size : 2 * size + 32;
    return (size + 63) / 64 * 64 + 32;
  }
  static constexpr int kPitchK = pitch(kD);
  static constexpr int kPitchV = pitch(kDv);
  static constexpr int kScaleBytes = kBytes == 1 ? kKeys * 2 * kStreams * 4 : 0;
  static constexpr int kStageBytes = kKeys * (kPitchK * kStreams + kPitchV) + kScaleBytes;

  // Queries of many row tiles do not fit the registers beside their sums: they lie in shared memory as fragments, with
  // what they were divided by, in the place of the warps' results.
  static constexpr bool kSharedQuery = kTiles >= 4;
  static constexpr int kQueryBytes = kTiles * (kD / 16) * 256;
  // The warps' results, four rows of each stream at a time, on their way to be folded.
  static constexpr int kMergeRows = 4 * kStreams;
  static constexpr int kMergePitch = kDv + 4;
  static constexpr int kResultBytes = kWarps * kMergeRows * (kMergePitch * 4 + 8);
  static constexpr int kSharedQueryBytes = kSharedQuery ? kQueryBytes + kTiles * 8 * 4 : 0;
  static constexpr int kMergeBytes = kResultBytes > kSharedQueryBytes ? kResultBytes : kSharedQueryBytes;

  static constexpr int kSharedBytes = 224 * 1024;             // of a multiprocessor
  static constexpr int kOtherBytes = kMergeBytes + 4 * 1024;  // tables, and what a block takes besides
  static constexpr int stages(int blocks) { return (kSharedBytes / blocks - kOtherBytes) / (kWarps * kStageBytes); }
  static constexpr int kBlocks = kBytes == 1 && kTiles == 1 && stages(3) >= 3 ? 3 : stages(2) >= 2 ? 2 : 1;
  static constexpr int kStages = stages(kBlocks) > 8 ? 8 : stages(kBlocks) < 2 ? 2 : stages(kBlocks);
  // Tiles under way: one fewer than there is room for, where that leaves two. The blocks of a token's kv heads then
  // stay closer together, and the memory's pages open longer: 1.5 % faster on long batches.
  static constexpr int kAhead = kStages > 2 && kStreams == 1 ? kStages - 1 : kStages;
  // A warp's tiles that L2 keeps as it keeps other data: about as much as it holds, so that what was written before
  // goes out at once. Later ones are given up first: reads that push out each other take 3 % of the memory's rate, and
  // unwritten lines that leave one by one, between reads, as much. Warps with few tiles give up all, and leave what was
  // written where it is.
  static constexpr int kFirstTiles = 128 * 1024 / kStageBytes;
  static constexpr int kFewTiles = 320 * 1024 / kStageBytes;
  static constexpr int kRingBytes = kStages * kWarps * kStageBytes;
  static constexpr int kStreamRows = 8 * kRowTiles;
  static constexpr int kMainBytes = kRingBytes + kMergeBytes;
};

// One instance of the wide decode kernel, for 8-bit caches: a block takes kNumHeads neighbouring kv heads of its
// tokens, a warp a head. Tokens lie in shared memory as they do in the cache, scales behind their rows included
// (kInlineScales), at a pitch that spreads them over the banks.
template <DType kKVType, int kHeadSize, int kNumHeads, bool kInlineScales>
struct WideShape {
  static constexpr DType kKV = kKVType;
  static constexpr int kD = kHeadSize;
  static constexpr int kDv = kHeadSize;
  static constexpr int kDvPart = kHeadSize;
  static constexpr int kStreams = 1;
  static constexpr int kRowTiles = 1;
  static constexpr int kTiles = 1;
  static constexpr int kStreamRows = 8;
  static constexpr int kBytes = 1;
  static constexpr bool kSharedQuery = false;
  static constexpr int kHeads = kNumHeads;
  static constexpr int kKeys = 16;                    // a stage
  static constexpr int kThreads = (kHeads + 1) * 32;  // a warp a head, and one that loads
  static constexpr RowReads kReads = kInlineScales ? RowReads::kWords : RowReads::kChunks;

  static constexpr int kRowBytes = kHeadSize + (kInlineScales ? 4 : 0);
  static constexpr int kTokenBytes = kHeads * kRowBytes;
  static constexpr int kPitchK = kTokenBytes;
  static constexpr int kPitchV = kPitchK;
  static constexpr int kRowsBytes = 2 * kKeys * kPitchK;                 // of a stage
  static constexpr int kScaleRowBytes = kInlineScales ? 0 : kHeads * 4;  // of a token's separate scales
  static constexpr int kStageBytes = (kRowsBytes + 2 * kKeys * kScaleRowBytes + 127) / 128 * 128;
  static constexpr int kBlocks = 8 / kHeads;
  static constexpr int kStages = 4;
  static constexpr int kFirstTiles = 1024 * 1024 / kBlocks / kRowsBytes;  // as of DecodeShape, of a block
  static constexpr int kBarrierBytes = 2 * kStages * 8;
  static constexpr int kMainBytes = kStages * kStageBytes + kBarrierBytes;
  static_assert(kHeadSize % 64 == 0 && kTokenBytes % 16 == 0);
};

// One instance of the tile kernel: four warps, each with kRowTiles tiles of 16 rows (differential: one a stream). kType
// is what is multiplied; kKVBytes 1 means that the cache stores 8-bit elements, which are widened to it.
template <class Type, int kElementBytes, int kHeadSize, int kHeadSizeV, int kNumStreams>
struct TileShape {
  using T = Type;
  static constexpr int kBytes = kElementBytes;
  static constexpr int kD = kHeadSize;
  static constexpr int kStreams = kNumStreams;
  static constexpr int kDvPart = kHeadSizeV;
  static constexpr int kDv = kHeadSizeV * kNumStreams;
  static constexpr int kWarps = 4;
  static constexpr int kRowTiles = kDv > 128 || kD > 128 ? 1 : 2;
  static constexpr int kRows = kWarps * 16 * kRowTiles;    // of all streams
  static constexpr int kStreamRows = kRows / kNumStreams;  // of one
  static constexpr int kKeys = kRowTiles == 2 ? 64 : 32;   // a stage
  static constexpr int kStep = 32;                         // a softmax step
  static constexpr int kStages = 2;
  static constexpr int kBlocks = 2;

  static constexpr int kPitchQ = (kD / 8 | 1) * 16;
  static constexpr int kPitchK = (kD / 8 | 1) * 16;
  static constexpr int kPitchV = (kDv / 8 | 1) * 16;
  static constexpr int kQueryBytes = kRows * kPitchQ;
  static constexpr int kTileBytes = kKeys * (kPitchK * kStreams + kPitchV);  // as multiplied
  // As stored: the same place for 16-bit elements, staged apart for 8-bit ones.
  static constexpr int kRawPitchK = kBytes == 2 ? kPitchK : kD;
  static constexpr int kRawPitchV = kBytes == 2 ? kPitchV : kDv;
  static constexpr int kStageBytes = kKeys * (kRawPitchK * kStreams + kRawPitchV);
  static constexpr int kOffsetBytes = 2 * kKeys * 2 * kStreams * 4;
  static constexpr int kScaleBytes = kBytes == 1 ? kStages * kKeys * 2 * kStreams * 4 : 0;
  static constexpr int kMainBytes = kQueryBytes + kStages * kStageBytes + (kBytes == 1 ? kTileBytes : 0);
  static constexpr int kResultPitch = kDv + 4;
  static constexpr int kResultBytes = kRows * kResultPitch * 4;
  static constexpr int kBodyBytes = kMainBytes > kResultBytes ? kMainBytes : kResultBytes;
  static constexpr int kSharedBytes = kBodyBytes + kOffsetBytes + kScaleBytes;
};

// Rows (tokens times the q_heads of a kv head) of a request that the decode kernel takes at most.
constexpr int kMaxDecodeRows = 32;

// Batches of fewer keys are no wide decode kernel's: it has five times as many shares, whose parts have to be folded.
constexpr std::int32_t kWideKeys = 128 * 1024;

// Keys that its work is cut into.
constexpr int kWideUnitKeys = 16;

// Requests of a batch that the token decode kernel takes at most: a warp keeps two a lane.
constexpr int kMaxTokenSeqs = 64;

// Requests that the decode kernel's table in shared memory has room for.
constexpr int kMaxDecodeSeqs = 4096;

}  // namespace quire::cuda
