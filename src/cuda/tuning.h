// Tile shapes, stages and blocks of the kernels: the only place with such numbers.
#pragma once

#include "core/macros.h"
#include "quire/dtype.h"

namespace quire::cuda {

// One instance of the decode kernel. kRowTiles tiles of 16 rows (or one a stream), kKV is what the cache stores; 8-bit
// elements are multiplied as float16, others as they are.
template <DType kKVType, int kHeadSize, int kHeadSizeV, int kNumStreams, int kNumRowTiles>
struct DecodeShape {
  static constexpr DType kKV = kKVType;
  static constexpr int kD = kHeadSize;
  static constexpr int kStreams = kNumStreams;
  static constexpr int kRowTiles = kNumRowTiles;
  static constexpr int kDv = kHeadSizeV * kNumStreams;  // of a row of results
  static constexpr int kDvPart = kHeadSizeV;            // of a row of the cache
  static constexpr int kBytes = static_cast<int>(dtype_bytes(kKVType));
  static constexpr int kWarps = 4;
  static constexpr int kKeys = 16;  // a warp's tile

  // Rows in shared memory are padded so that the eight rows of an ldmatrix, or the keys of a phase of wide loads, fall
  // into different banks.
  static constexpr int kPitchK = kBytes == 2 ? (kD / 8 | 1) * 16 : (kD / 128 * 128 + (kD % 128 > 32 ? 160 : 32));
  static constexpr int kPitchV = kBytes == 2 ? (kDv / 8 | 1) * 16 : (kDv / 16 | 1) * 16;
  static constexpr int kScaleBytes = kBytes == 1 ? kKeys * 2 * kStreams * 4 : 0;
  static constexpr int kStageBytes = kKeys * (kPitchK * kStreams + kPitchV) + kScaleBytes;

  static constexpr int kSharedBytes = 224 * 1024;  // of a multiprocessor
  static constexpr int blocks() {
    const int room = 3 * kWarps * kStageBytes;  // three stages at least
    return kBytes == 1 && 3 * room < kSharedBytes && kRowTiles == 1 ? 3 : 2 * room < kSharedBytes ? 2 : 1;
  }
  static constexpr int kBlocks = blocks();
  static constexpr int kStages = [] {
    const int stages = (kSharedBytes / kBlocks - 9 * 1024) / (kWarps * kStageBytes);
    return stages > 8 ? 8 : stages < 2 ? 2 : stages;
  }();
  static constexpr int kRingBytes = kStages * kWarps * kStageBytes;
  // The warps' results before they are folded, in the ring's place.
  static constexpr int kRows = 16 * kRowTiles;
  static constexpr int kMergePitch = kDv + 4;
  static constexpr int kMergeBytes = kWarps * kRows * (kMergePitch * 4 + 8);
  static constexpr int kMainBytes = kRingBytes > kMergeBytes ? kRingBytes : kMergeBytes;
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

// Requests that the decode kernel's table in shared memory has room for.
constexpr int kMaxDecodeSeqs = 4096;

}  // namespace quire::cuda
