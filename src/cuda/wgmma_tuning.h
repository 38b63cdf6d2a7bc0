// Tile shapes and stages of the tile kernel on wgmma.
#pragma once

namespace quire::cuda {

// One instance of the tile kernel on wgmma: two warpgroups of 64 rows each, two warps that feed them. Rows of Q, K and
// V lie in columns of 64 elements (128 bytes), eight rows of a column make an atom of 1024 bytes that is swizzled, as
// the copy engine writes and wgmma reads it. Keys and values: [key / 8][column] atoms; queries: [column][row / 8].
// Differential attention: column s of keys and of values is stream s, warpgroup s has that stream of the same 64 rows.
template <class Type, int kHeadSize, int kHeadSizeV, int kNumStreams = 1>
struct WgmmaShape {
  using T = Type;
  static constexpr int kD = kHeadSize;
  static constexpr int kStreams = kNumStreams;
  static constexpr int kDvPart = kHeadSizeV;            // of a row of the cache
  static constexpr int kDv = kHeadSizeV * kNumStreams;  // of a row of results
  static constexpr int kGroups = 2;                     // warpgroups with rows
  static constexpr int kRows = 64 * kGroups;            // of all streams
  static constexpr int kStreamRows = kRows / kStreams;
  static constexpr int kThreads = 128 * (kGroups + 1);
  static constexpr int kKeys = kDv > 128 ? 64 : 128;  // a stage
  static constexpr int kColumnsQ = kD / 64;
  static constexpr int kColumnsK = kColumnsQ * kStreams;
  static constexpr int kColumnsV = kDv / 64;
  static constexpr int kBlockV = kColumnsV % 2 == 0 ? 128 : 64;  // dimensions of values that a product takes
  static constexpr int kBlocksV = kColumnsV * 64 / kBlockV;
  static_assert(kD % 64 == 0 && kDv % 64 == 0);
  static_assert(kStreams == 1 || (kStreams == kGroups && kD == 64 && kDvPart == 64));
  static constexpr int kQueryBytes = kRows * kColumnsQ * 128;
  static constexpr int kKeyBytes = kKeys * kColumnsK * 128;
  static constexpr int kValueBytes = kKeys * kColumnsV * 128;
  static constexpr int kRoom = (226 * 1024 - kQueryBytes) / (kKeyBytes + kValueBytes);
  static constexpr int kStages = kRoom > 4 ? 4 : kRoom;
  static constexpr int kSegments = 4;  // that the feeding warps are ahead of the others, at most
  static constexpr int kSegmentBytes = kSegments * 48;
  static constexpr int kBarrierBytes = (4 * kStages + 2 + 2 * kSegments) * 8;
  static constexpr int kSharedBytes =
      kQueryBytes + kStages * (kKeyBytes + kValueBytes) + kSegmentBytes + kBarrierBytes + 1024;
  static_assert(kStages >= 2);
};

// Rows of a request that the decode kernel takes at most where this one takes the others.
constexpr int kMaxDecodeRowsBesideWgmma = 16;

}  // namespace quire::cuda
