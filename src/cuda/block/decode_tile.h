// One warp's work on 16 keys in the decode kernel: loads through the block table, scores, softmax, values.
#pragma once

#include <type_traits>

#include "cuda/block/schedule.h"
#include "cuda/block/tile_terms.h"
#include "cuda/ptx/convert.h"
#include "cuda/ptx/cp_async.h"
#include "cuda/ptx/mma.h"
#include "cuda/tuning.h"
#include "kv/addressing.h"
#include "variant/number.h"

namespace quire::cuda {

template <class Shape>
using DecodeNumber = std::conditional_t<Shape::kKV == DType::kBFloat16, __nv_bfloat16, __half>;

// Where rows of one array start, in units of 16 bytes (4 where rows are aligned to less): page * page + token * token +
// head. The host has checked that the sum stays below 2^32.
struct RowUnits {
  std::uint32_t page = 0;
  std::uint32_t token = 0;
  std::uint32_t head = 0;

  __device__ static RowUnits of(const KVRows& rows, std::int32_t kv_head, int element_bytes, int unit) {
    const auto units = [&](std::int64_t stride) { return static_cast<std::uint32_t>(stride * element_bytes / unit); };
    return {units(rows.page_stride), units(rows.token_stride), units(rows.head_stride * kv_head)};
  }
  __device__ std::uint32_t at(std::uint32_t page_id, std::uint32_t token_id) const {
    return page_id * page + token_id * token + head;
  }
};

// Keys and values of a segment, and the warp's ring of tiles in shared memory.
template <class Shape>
struct DecodeLoader {
  const KVSource* kv;
  FaultRecord* record;
  std::uint32_t ring;  // this warp's
  std::int32_t seq;
  std::int32_t kv_head;
  KeyRange keys;             // that may be read
  bool narrow;               // rows are aligned to 4 bytes only
  std::int32_t block_shift;  // of a block size that is a power of two, else -1
  std::int32_t lane;
  RowUnits units[2 * Shape::kStreams];  // keys, values of each stream

  __device__ QUIRE_INLINE void find_units() {
#pragma unroll
    for (int i = 0; i < 2 * Shape::kStreams; ++i) {
      units[i] = RowUnits::of(i % 2 == 0 ? kv->key[i / 2] : kv->value[i / 2], kv_head, Shape::kBytes, narrow ? 4 : 16);
    }
  }

  __device__ std::uint32_t stage(int index) const {
    return ring + static_cast<std::uint32_t>(index * Shape::kStageBytes);
  }

  __device__ QUIRE_INLINE std::uint32_t block_of(std::uint32_t kv_pos) const {
    return block_shift >= 0 ? kv_pos >> block_shift : kv_pos / static_cast<std::uint32_t>(kv->block_size);
  }

  // The block table's entry for this lane's key of the tile at `first`; -1 where there is no key.
  __device__ QUIRE_INLINE std::int32_t page_of(std::int32_t first) const {
    const std::int32_t kv_pos = first + lane % Shape::kKeys;
    if (kv_pos < keys.begin || kv_pos >= keys.end) return -1;
    if (kv->block_table == nullptr) return 0;
    return kv->block_table[static_cast<std::int64_t>(seq) * kv->block_table_stride +
                           block_of(static_cast<std::uint32_t>(kv_pos))];
  }

  // Starts the copies of a tile whose block ids page_of gave; rows without a page become zeros.
  __device__ QUIRE_INLINE void load(int index, std::int32_t first, std::int32_t page) const {
    const std::int32_t kv_pos = first + lane % Shape::kKeys;
    bool there = page >= 0;
    std::uint32_t token = 0;
    if (kv->block_table == nullptr) {
      token = static_cast<std::uint32_t>(there ? kv->kv_start[seq] + kv_pos : 0);
    } else {
      const auto position = static_cast<std::uint32_t>(kv_pos);
      token = position - block_of(position) * static_cast<std::uint32_t>(kv->block_size);
      if (!there || page >= kv->num_blocks) {
        if (kv_pos >= keys.begin && kv_pos < keys.end) report(record, Fault::kBlock, seq, page, kv->num_blocks);
        there = false;
      }
    }
    const bool all = __all_sync(kFullWarp, there);
    const std::uint32_t to = stage(index);
    const auto page_id = static_cast<std::uint32_t>(page);
#pragma unroll
    for (int stream = 0; stream < Shape::kStreams; ++stream) {
      copy_rows<Shape::kD, Shape::kPitchK>(kv->key[stream].data, units[2 * stream].at(page_id, token), there, all,
                                           to + stream * Shape::kKeys * Shape::kPitchK);
      copy_rows<Shape::kDvPart, Shape::kPitchV>(
          kv->value[stream].data, units[2 * stream + 1].at(page_id, token), there, all,
          to + Shape::kStreams * Shape::kKeys * Shape::kPitchK + stream * Shape::kDvPart * Shape::kBytes);
    }
    if constexpr (Shape::kBytes == 1) {
      copy_scales({there ? page : -1, static_cast<std::int64_t>(token)}, to + Shape::kStageBytes - Shape::kScaleBytes);
    }
  }

 private:
  // Rows of kSize elements; lane i knows the offset of row i % kKeys, in units, and whether it is there.
  template <int kSize, int kPitch>
  __device__ QUIRE_INLINE void copy_rows(const void* rows, std::uint32_t offset, bool there, bool all,
                                         std::uint32_t to) const {
    const auto* data = static_cast<const std::byte*>(rows);
    constexpr int kRowBytes = kSize * Shape::kBytes;
    if (Shape::kBytes == 2 || !narrow) {
      constexpr int kChunks = kRowBytes / 16;
#pragma unroll
      for (int i = 0; i < Shape::kKeys * kChunks / 32; ++i) {
        const int row = (i * 32 + lane) / kChunks;
        const int chunk = (i * 32 + lane) % kChunks;
        const std::uint32_t from = __shfl_sync(kFullWarp, offset, row) + static_cast<std::uint32_t>(chunk);
        const std::uint32_t target = to + static_cast<std::uint32_t>(row * kPitch + chunk * 16);
        if (all) {
          ptx::cp_async_16(target, data + static_cast<std::uint64_t>(from) * 16);
        } else {
          const bool valid = __shfl_sync(kFullWarp, there, row);
          ptx::cp_async_16(target, data + (valid ? static_cast<std::uint64_t>(from) * 16 : 0), valid);
        }
      }
    } else {
      constexpr int kWords = kRowBytes / 4;
#pragma unroll 4
      for (int i = 0; i < Shape::kKeys * kWords / 32; ++i) {
        const int row = (i * 32 + lane) / kWords;
        const int word = (i * 32 + lane) % kWords;
        const std::uint32_t from = __shfl_sync(kFullWarp, offset, row) + static_cast<std::uint32_t>(word);
        const bool valid = __shfl_sync(kFullWarp, there, row);
        ptx::cp_async_4(to + static_cast<std::uint32_t>(row * kPitch + word * 4),
                        data + (valid ? static_cast<std::uint64_t>(from) * 4 : 0), valid);
      }
    }
  }

  // Row scales: keys' in the first 16 floats of a stream, values' in the next.
  __device__ QUIRE_INLINE void copy_scales(KVPlace place, std::uint32_t to) const {
    if (kv->key[0].scales == nullptr) return;
    const bool of_keys = lane < 16;
#pragma unroll
    for (int stream = 0; stream < Shape::kStreams; ++stream) {
      const bool there = place.page >= 0;
      const KVRows& keys_of = kv->key[stream];
      const KVRows& values_of = kv->value[stream];
      const std::int64_t page = of_keys ? keys_of.scale_page_stride : values_of.scale_page_stride;
      const std::int64_t token = of_keys ? keys_of.scale_token_stride : values_of.scale_token_stride;
      const std::int64_t head = of_keys ? keys_of.scale_head_stride : values_of.scale_head_stride;
      const float* scales = of_keys ? keys_of.scales : values_of.scales;
      const std::int64_t offset = there ? place.page * page + place.token * token + kv_head * head : 0;
      ptx::cp_async_4(to + static_cast<std::uint32_t>((stream * 32 + lane) * 4), scales + offset, there);
    }
  }
};

// The rows of one 16-row tile that a thread holds: row lane / 4 and the one 8 below.
struct DecodeRow {
  std::int32_t q_head = 0;
  std::int32_t row = 0;  // token inside the request
};

// Fragments and running softmax of a warp.
template <class Shape>
struct DecodeState {
  using T = DecodeNumber<Shape>;

  std::uint32_t query[Shape::kRowTiles][Shape::kD / 16][4];
  float values[Shape::kRowTiles][Shape::kDv / 8][4];
  float largest[Shape::kRowTiles][2];
  float sum[Shape::kRowTiles][2];
  float factor[Shape::kRowTiles][2];  // of the product, to units of log 2 (or to natural ones when terms change logits)
  float unit[Shape::kStreams];        // the largest row scale of values so far; weights are relative to it
  DecodeRow rows[Shape::kRowTiles][2];

  __device__ void reset() {
#pragma unroll
    for (int tile = 0; tile < Shape::kRowTiles; ++tile) {
#pragma unroll
      for (int j = 0; j < Shape::kDv / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) values[tile][j][i] = 0.0f;
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        largest[tile][half] = -INFINITY;
        sum[tile][half] = 0.0f;
      }
    }
#pragma unroll
    for (float& one : unit) one = 0.0f;
  }
};

// The dimension of element `pair` (0, 1) of words of query fragments: 8-bit keys are read eight dimensions a lane.
template <class Shape>
__device__ QUIRE_INLINE int query_dim(int step, int word, int lane) {
  if constexpr (Shape::kBytes == 2) return 16 * step + 2 * (lane % 4) + (word >= 2 ? 8 : 0);
  return 32 * (step / 2) + 8 * (lane % 4) + 4 * (step % 2) + (word >= 2 ? 2 : 0);
}

// Loads the queries of the segment's rows; rows that are not there become zero.
template <class Shape>
__device__ QUIRE_INLINE void load_queries(const AttentionArgs& args, const Segment& segment, std::int32_t group,
                                          const TileTerms& how, DecodeState<Shape>& state) {
  using T = DecodeNumber<Shape>;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const std::int32_t num_rows = segment.rows.num_tokens * group;
#pragma unroll
  for (int tile = 0; tile < Shape::kRowTiles; ++tile) {
    const int stream = Shape::kStreams == 2 ? tile : 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int32_t r = (Shape::kStreams == 2 ? 0 : tile * 16) + lane / 4 + 8 * half;
      DecodeRow& row = state.rows[tile][half];
      const bool valid = r < num_rows;
      row.row = segment.rows.first_token + (valid ? r / group : 0);
      row.q_head = (segment.kv_head * group + (valid ? r % group : 0)) * Shape::kStreams + stream;
      const std::int64_t base =
          (segment.rows.lengths.query_start + row.row) * args.query_token_stride + row.q_head * args.query_head_stride;
      float lift = 1.0f;
      if constexpr (Shape::kBytes == 1) {
        // A power of two brings the row's largest element near 1, so that any dtype fits float16.
        float magnitude = 0.0f;
        for (int d = lane % 4; d < Shape::kD; d += 4) {
          if (valid) magnitude = fmaxf(magnitude, fabsf(load_as_float(args.query, args.query_dtype, base + d)));
        }
        magnitude = fmaxf(magnitude, __shfl_xor_sync(kFullWarp, magnitude, 1));
        magnitude = fmaxf(magnitude, __shfl_xor_sync(kFullWarp, magnitude, 2));
        if (magnitude > 0.0f && magnitude < INFINITY) lift = exp2f(static_cast<float>(ilogbf(magnitude)));
      }
#pragma unroll
      for (int step = 0; step < Shape::kD / 16; ++step) {
#pragma unroll
        for (int word = half; word < 4; word += 2) {
          const std::int64_t at = base + query_dim<Shape>(step, word, lane);
          std::uint32_t bits = 0;
          if constexpr (Shape::kBytes == 2) {
            if (valid) {
              bits = *reinterpret_cast<const std::uint32_t*>(static_cast<const std::uint16_t*>(args.query) + at);
            }
          } else if (valid) {
            bits = ptx::pack<T>(load_as_float(args.query, args.query_dtype, at) / lift,
                                load_as_float(args.query, args.query_dtype, at + 1) / lift);
          }
          state.query[tile][step][word] = bits;
        }
      }
      state.factor[tile][half] = args.variant.scale * args.query_scale * args.kv.key[stream].tensor_scale * lift *
                                 (how.has_logit_terms ? 1.0f : kLog2E);
    }
  }
}

// scores[n] = Q * K^T for keys 8 n + column of the tile at `keys` in shared memory.
template <class Shape>
__device__ QUIRE_INLINE void score_tile(const std::uint32_t (&query)[Shape::kD / 16][4], std::uint32_t keys,
                                        float (&scores)[2][4]) {
  using T = DecodeNumber<Shape>;
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[n][i] = 0.0f;
  }
  if constexpr (Shape::kBytes == 2) {
    const std::uint32_t from =
        keys + static_cast<std::uint32_t>((lane / 16 * 8 + lane % 8) * Shape::kPitchK + lane / 8 % 2 * 16);
#pragma unroll
    for (int step = 0; step < Shape::kD / 16; ++step) {
      std::uint32_t k[4];
      ptx::ldmatrix_x4(k, from + static_cast<std::uint32_t>(step * 32));
      ptx::mma_16816<T>(scores[0], query[step], k[0], k[1]);
      ptx::mma_16816<T>(scores[1], query[step], k[2], k[3]);
    }
  } else {
#pragma unroll
    for (int block = 0; block < Shape::kD / 32; ++block) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        std::uint32_t words[2];
        ptx::load_shared(
            words, keys + static_cast<std::uint32_t>((8 * n + lane / 4) * Shape::kPitchK + block * 32 + lane % 4 * 8));
#pragma unroll
        for (int step = 0; step < 2; ++step) {
          ptx::mma_16816<T>(scores[n], query[2 * block + step], ptx::widen_pair<Shape::kKV, false>(words[step]),
                            ptx::widen_pair<Shape::kKV, true>(words[step]));
        }
      }
    }
  }
}

// values += weights * V for one row tile; `part` is the stream whose values these are.
template <class Shape>
__device__ QUIRE_INLINE void add_value_tile(const std::uint32_t (&weights)[4], std::uint32_t tile, int part,
                                            float (&values)[Shape::kDv / 8][4]) {
  using T = DecodeNumber<Shape>;
  const int lane = static_cast<int>(threadIdx.x % 32);
  if constexpr (Shape::kBytes == 2) {
    constexpr int kColumns = Shape::kDvPart / 8;
    const std::uint32_t from = tile + static_cast<std::uint32_t>((lane / 8 % 2 * 8 + lane % 8) * Shape::kPitchV +
                                                                 (part * kColumns + lane / 16) * 16);
#pragma unroll
    for (int j = 0; j < kColumns; j += 2) {
      std::uint32_t v[4];
      ptx::ldmatrix_x4_transposed(v, from + static_cast<std::uint32_t>(j * 16));
      ptx::mma_16816<T>(values[part * kColumns + j], weights, v[0], v[1]);
      ptx::mma_16816<T>(values[part * kColumns + j + 1], weights, v[2], v[3]);
    }
  } else {
    // A lane reads kDvPart / 8 neighbouring elements of its four keys, up to 16 at a time.
    constexpr int kWords = Shape::kDvPart / 32;
    constexpr int kWide = kWords % 4 == 0 ? 4 : kWords % 2 == 0 ? 2 : 1;
    const std::uint32_t from = tile + static_cast<std::uint32_t>(2 * (lane % 4) * Shape::kPitchV +
                                                                 part * Shape::kDvPart + lane / 4 * kWords * 4);
#pragma unroll
    for (int base = 0; base < kWords; base += kWide) {
      std::uint32_t rows[4][kWide];
#pragma unroll
      for (int key = 0; key < 4; ++key) {
        ptx::load_shared(rows[key],
                         from + static_cast<std::uint32_t>((key % 2 + key / 2 * 8) * Shape::kPitchV + base * 4));
      }
#pragma unroll
      for (int pair = 0; pair < 2 * kWide; ++pair) {
        const int word = pair / 2;
        const unsigned order = pair % 2 == 0 ? 0x5140u : 0x7362u;
        const std::uint32_t low = __byte_perm(rows[0][word], rows[1][word], order);
        const std::uint32_t high = __byte_perm(rows[2][word], rows[3][word], order);
        const int j = part * Shape::kDvPart / 8 + base * 4 + pair * 2;
        ptx::mma_16816<T>(values[j], weights, ptx::widen_pair<Shape::kKV, false>(low),
                          ptx::widen_pair<Shape::kKV, false>(high));
        ptx::mma_16816<T>(values[j + 1], weights, ptx::widen_pair<Shape::kKV, true>(low),
                          ptx::widen_pair<Shape::kKV, true>(high));
      }
    }
  }
}

// The dimension of column `column` (0 .. 7) of value fragment j.
template <class Shape>
__device__ QUIRE_INLINE int value_dim(int j, int column) {
  if constexpr (Shape::kBytes == 2) return 8 * j + column;
  constexpr int kColumns = Shape::kDvPart / 8;
  return j / kColumns * Shape::kDvPart + column * kColumns + j % kColumns;
}

}  // namespace quire::cuda
