// Chooses the kernels of an attention call and lays out their scratch.
#include "cuda/call.h"

#include <algorithm>
#include <bit>

#include "core/checked.h"
#include "cuda/kernel/small.h"
#include "cuda/tuning.h"
#include "cuda/wgmma_tuning.h"

namespace quire::cuda {
namespace {

constexpr std::int64_t kAlign = 256;
constexpr std::int32_t kMaxSideBySide = 4;     // row tiles of a request
constexpr std::int32_t kTileUnits = 3;         // ScheduleShape::tile_units of prompts on wgmma
constexpr std::int64_t kDealtTiles = 4;        // row tiles of a request that a group has, from which on they are dealt
constexpr std::int64_t kCombineWarps = 8;      // of a block of the combine kernel
constexpr std::int64_t kCombineBlocks = 3;     // of it that a multiprocessor holds
constexpr std::int64_t kLeastShareKeys = 512;  // of a share of the token decode kernel
constexpr std::int64_t kMostAlignedKeys = 8192;  // of shares of equal requests that begin and end with them
constexpr auto kFloatBytes = static_cast<std::int64_t>(sizeof(float));

BatchBounds bounds_of(const AttentionArgs& args, const AttentionPlan& plan) {
  const std::int32_t most = kMaxDecodeRows / group_size(args);
  if (plan.items.empty()) return {.longest_query = args.num_tokens, .shortest_query = 1, .longest_small = most};
  BatchBounds bounds{.shortest_query = args.num_tokens};
  for (const WorkItem& item : plan.items) {
    bounds.longest_query = std::max(bounds.longest_query, item.token_begin + item.token_count);
    if (item.token_begin == 0) {
      bounds.shortest_query = std::min(bounds.shortest_query, item.token_count);
      if (item.token_count <= most) {
        bounds.longest_small = std::max(bounds.longest_small, item.token_count);
        bounds.num_keys += item.kv_end - item.kv_begin;
        bounds.most_keys = std::max<std::int64_t>(bounds.most_keys, item.kv_end - item.kv_begin);
      }
    }
    bounds.num_fixed_units += ceil_div(std::max(item.kv_end - item.kv_begin, 1), kSplitTokens) + 1;
  }
  return bounds;
}

// How the rows of the cache are aligned: to 16 bytes, to 4, or less.
std::int64_t row_alignment(const KVSource& kv) {
  const std::int64_t bytes = dtype_bytes(kv.dtype);
  std::uint64_t bits = 16;
  for (std::int32_t stream = 0; stream < kv.num_streams; ++stream) {
    for (const KVRows* rows : {&kv.key[stream], &kv.value[stream]}) {
      bits |= reinterpret_cast<std::uintptr_t>(rows->data);
      bits |= static_cast<std::uint64_t>(rows->page_stride * bytes) |
              static_cast<std::uint64_t>(rows->token_stride * bytes) |
              static_cast<std::uint64_t>(rows->head_stride * bytes);
    }
  }
  return static_cast<std::int64_t>(bits & (~bits + 1));
}

// SplitParams::inline_unit of this cache.
std::int32_t inline_unit(const KVSource& kv) {
  if (kv.num_streams != 1 || dtype_bytes(kv.dtype) != 1) return 0;
  std::int64_t bits = 32;
  const auto check = [&](const KVRows& rows, std::int32_t size) {
    const auto* behind = reinterpret_cast<const float*>(static_cast<const std::byte*>(rows.data) + size);
    const bool is_inline = rows.scales == behind && rows.scale_page_stride * kFloatBytes == rows.page_stride &&
                           rows.scale_token_stride * kFloatBytes == rows.token_stride &&
                           rows.scale_head_stride * kFloatBytes == rows.head_stride;
    bits |= is_inline ? rows.page_stride | rows.token_stride : 1;
  };
  check(kv.key[0], kv.head_size);
  check(kv.value[0], kv.head_size_v);
  const std::int64_t unit = bits & -bits;
  return unit >= 16 ? static_cast<std::int32_t>(unit) : 0;
}

bool has_inline_scales(const KVSource& kv) { return kv.key[0].scales != nullptr && inline_unit(kv) != 0; }

// Whether every row starts within 2^32 - 1 units of its array.
bool offsets_fit(const KVSource& kv, std::int64_t unit_bytes) {
  for (std::int32_t stream = 0; stream < kv.num_streams; ++stream) {
    for (const KVRows* rows : {&kv.key[stream], &kv.value[stream]}) {
      const std::int64_t last = (kv.num_blocks - 1) * rows->page_stride + (kv.block_size - 1) * rows->token_stride +
                                (kv.num_kv_heads - 1) * rows->head_stride;
      if (last * dtype_bytes(kv.dtype) / unit_bytes >= 0xffffffff) return false;
    }
  }
  return true;
}

// Whether split kernels can read this query and cache at all.
bool fits_split(const AttentionArgs& args) {
  const KVSource& kv = args.kv;
  const bool is_narrow_dtype = dtype_bytes(kv.dtype) == 1;
  const bool query_fits = is_narrow_dtype ? dtype_bytes(args.query_dtype) <= 2 : args.query_dtype == kv.dtype;
  const std::int64_t alignment = row_alignment(kv);
  return query_fits && args.variant.mm_prefix_ranges == nullptr && alignment >= (is_narrow_dtype ? 4 : 16) &&
         offsets_fit(kv, alignment < 16 ? 4 : 16);
}

// Whether tokens hold their kv heads side by side, and what is copied at once is aligned to 16 bytes.
bool fits_wide(const KVSource& kv, std::int64_t heads) {
  const bool is_inline = has_inline_scales(kv);
  const std::int64_t row = kv.head_size + (is_inline ? kFloatBytes : 0);
  std::int64_t odd = row * heads % 16;
  for (const KVRows* rows : {&kv.key[0], &kv.value[0]}) {
    odd |= (reinterpret_cast<std::intptr_t>(rows->data) | rows->page_stride | rows->token_stride) % 16;
    odd |= rows->head_stride - row;
    if (is_inline || rows->scales == nullptr) continue;
    odd |= reinterpret_cast<std::intptr_t>(rows->scales) % 16;
    odd |= (rows->scale_page_stride | rows->scale_token_stride) % 4 | (rows->scale_head_stride - 1);
  }
  return odd == 0;
}

// The wide kernel for a call, or null.
const DecodeKernel* choose_wide(const Call& call, const AttentionArgs& args, const Context& device,
                                DecodeChoice choice) {
  const KVSource& kv = args.kv;
  if (device.major != 9 || kv.num_streams != 1 || dtype_bytes(kv.dtype) != 1) return nullptr;
  if (call.bounds.longest_small * group_size(args) > 8 || call.bounds.num_keys < kWideKeys) return nullptr;
  for (const std::int32_t heads : {8, 4}) {
    if (kv.num_kv_heads % heads != 0 || (choice == DecodeChoice::kForTensors && !fits_wide(kv, heads))) continue;
    const DecodeKernel* kernel = find_decode_kernel({.kv = kv.dtype,
                                                     .head_size = kv.head_size,
                                                     .head_size_v = kv.head_size_v,
                                                     .heads = heads,
                                                     .inline_scales = has_inline_scales(kv)});
    if (kernel != nullptr && decode_shared_bytes(*kernel, args.num_seqs) <= device.shared_bytes) return kernel;
  }
  return nullptr;
}

// The token kernel for a call, or null.
const DecodeKernel* choose_token(const Call& call, const AttentionArgs& args, const Context& device) {
  const KVSource& kv = args.kv;
  const Variant& variant = args.variant;
  const bool only_masks = variant.softcap == 0.0f && variant.alibi == AlibiKind::kNone && variant.tree.size == nullptr;
  const bool has_page_tiles = kv.block_table != nullptr && kv.block_size >= 16 &&
                              std::has_single_bit(static_cast<std::uint32_t>(kv.block_size));
  if (device.major != 9 || kv.num_streams != 1 || dtype_bytes(kv.dtype) != 2 || !only_masks || !has_page_tiles)
    return nullptr;
  if (call.bounds.longest_query != 1 || group_size(args) > 8 || args.num_seqs > kMaxTokenSeqs) return nullptr;
  return find_decode_kernel(
      {.kv = kv.dtype, .head_size = kv.head_size, .head_size_v = kv.head_size_v, .one_token = true});
}

// The tile kernel on wgmma for a call, or null.
const TileKernel* choose_wgmma(const AttentionArgs& args, const Context& device, TileChoice choice) {
  const bool suits = choice == TileChoice::kForTensors ? suits_wgmma(args) : choice == TileChoice::kWgmma;
  if (!suits || device.major != 9) return nullptr;
  const KVSource& kv = args.kv;
  const auto bytes = static_cast<std::int32_t>(dtype_bytes(kv.dtype));
  return find_wgmma_kernel({args.query_dtype, bytes, kv.head_size, kv.head_size_v, kv.num_streams});
}

void choose_decode(Call& call, const AttentionArgs& args, const Context& device, DecodeChoice choice,
                   TileChoice tile_choice) {
  const KVSource& kv = args.kv;
  const std::uint64_t query_bits = reinterpret_cast<std::uintptr_t>(args.query) |
                                   static_cast<std::uint64_t>(args.query_token_stride * 2) |
                                   static_cast<std::uint64_t>(args.query_head_stride * 2);
  if (args.num_seqs > kMaxDecodeSeqs || (dtype_bytes(kv.dtype) == 2 && query_bits % 4 != 0)) return;
  const DecodeKernel* kernel = nullptr;
  const std::int32_t most_rows =
      choose_wgmma(args, device, tile_choice) == nullptr ? kMaxDecodeRows : kMaxDecodeRowsBesideWgmma;
  for (std::int32_t row_tiles = most_rows / 8; row_tiles > 0; row_tiles /= 2) {
    const DecodeKernel* found = find_decode_kernel({kv.dtype, kv.head_size, kv.head_size_v, kv.num_streams, row_tiles});
    if (found == nullptr) continue;
    if (kernel != nullptr && call.bounds.longest_small * group_size(args) > 8 * row_tiles) break;
    kernel = found;
  }
  if (choice != DecodeChoice::kNarrow) {
    if (const DecodeKernel* wide = choose_wide(call, args, device, choice); wide != nullptr) kernel = wide;
    if (const DecodeKernel* token = choose_token(call, args, device); token != nullptr) kernel = token;
  }
  if (kernel == nullptr || decode_shared_bytes(*kernel, args.num_seqs) > device.shared_bytes) return;
  const std::int32_t max_rows = 8 * kernel->key.row_tiles;
  if (static_cast<std::int64_t>(call.bounds.shortest_query) * group_size(args) > max_rows) return;
  call.decode = kernel;
  call.decode_rows = max_rows;
}

void choose_tile(Call& call, const AttentionArgs& args, const Context& device, TileChoice choice) {
  const KVSource& kv = args.kv;
  const DType dtype = args.query_dtype == DType::kBFloat16 ? DType::kBFloat16 : DType::kFloat16;
  const TileKey key{dtype, static_cast<std::int32_t>(dtype_bytes(kv.dtype)), kv.head_size, kv.head_size_v,
                    kv.num_streams};
  const TileKernel* kernel = choose_wgmma(args, device, choice);
  if (kernel == nullptr) kernel = find_tile_kernel(key);
  if (kernel == nullptr || kernel->shared_bytes + kernel->static_bytes > device.shared_bytes) return;
  if (group_size(args) > kernel->rows / kv.num_streams) return;
  call.tile = kernel;
}

std::int64_t take(Call& call, std::int64_t bytes) {
  const std::int64_t begin = call.bytes;
  call.bytes += round_up(bytes, kAlign);
  return begin;
}

// Groups of blocks, one a kv head, that the device runs at a time.
std::int32_t resident_groups(const Context& device, const AttentionArgs& args, int blocks, std::int64_t shared_bytes,
                             std::int32_t heads_a_block) {
  const std::int64_t room = device.shared_bytes_all / (shared_bytes + 2048);
  const auto resident = static_cast<std::int32_t>(std::clamp<std::int64_t>(room, 1, blocks));
  return std::max(device.multiprocessors * resident * heads_a_block / args.kv.num_kv_heads, 1);
}

// Shares that a decode batch is cut into, of the `most` that the device works on at a time. Fewer parts are folded
// sooner: one token over few keys gets fewer shares, down to one a multiprocessor, and equal requests get shares that
// begin and end with them, where next to none are given up for it.
std::int32_t decode_groups(const Call& call, const AttentionArgs& args, const Context& device, std::int32_t most) {
  const BatchBounds& bounds = call.bounds;
  if (call.decode->key.one_token && bounds.num_keys > 0) {
    const std::int32_t fewest = std::max(device.multiprocessors / args.kv.num_kv_heads, 1);
    const std::int64_t enough = ceil_div(bounds.num_keys, kLeastShareKeys);
    most = static_cast<std::int32_t>(std::min<std::int64_t>(most, std::max<std::int64_t>(enough, fewest)));
  }
  const bool is_uniform = bounds.num_keys > 0 && bounds.num_keys == bounds.most_keys * args.num_seqs;
  if (!is_uniform || bounds.num_keys > most * kMostAlignedKeys) return most;
  for (std::int32_t groups = most; groups >= most - most / 16; --groups) {
    if (args.num_seqs % groups == 0 || groups % args.num_seqs == 0) return groups;
  }
  return most;
}

// Fills in what the stages have in common; `num_groups` is how many the device runs at a time.
void lay_out(Call& call, Stage& stage, const AttentionArgs& args, const Runtime& runtime, std::int32_t num_groups) {
  ScheduleShape& shape = stage.split.shape;
  const bool is_fixed = runtime.splits == KVSplits::kFixed;
  shape.group = group_size(args);
  if (is_fixed) shape.unit_keys = kSplitTokens;
  shape.num_groups = num_groups;
  const std::int64_t fixed_units = call.bounds.num_fixed_units + shape.num_entries;
  shape.num_slots = static_cast<std::int32_t>((is_fixed ? fixed_units : 2 * shape.num_groups) * args.kv.num_kv_heads);
  const auto block_size = static_cast<std::uint32_t>(args.kv.block_size);
  stage.split.block_shift = std::has_single_bit(block_size) ? std::countr_zero(block_size) : -1;
  stage.split.narrow_rows = row_alignment(args.kv) < 16;
  stage.split.inline_unit = stage.split.narrow_rows ? inline_unit(args.kv) : 0;
  const std::int64_t rows = static_cast<std::int64_t>(shape.num_slots) * stage.split.slot_rows;
  stage.table = take(call, (shape.num_entries + 1) * std::int64_t{4});
  stage.states = take(call, rows * 2 * kFloatBytes);
  stage.partials = take(call, rows * args.kv.num_streams * args.kv.head_size_v * kFloatBytes);
}

void lay_out_decode(Call& call, const AttentionArgs& args, const Runtime& runtime, const Context& device) {
  SplitParams& split = call.decode_stage.split;
  split.stream_rows = 8 * call.decode->key.row_tiles;
  split.slot_rows = split.stream_rows * args.kv.num_streams;
  split.shape.max_rows = call.decode_rows;
  split.shape.num_entries = args.num_seqs;
  if (call.decode->key.heads > 1) split.shape.unit_keys = kWideUnitKeys;
  const std::int64_t longest = static_cast<std::int64_t>(call.bounds.longest_query) * group_size(args);
  split.combine_rows = static_cast<std::int32_t>(std::clamp<std::int64_t>(longest, 1, call.decode_rows));
  if (!call.has_rest(args)) split.shape.planned_rows = split.combine_rows;
  const std::int32_t most = resident_groups(device, args, call.decode->blocks,
                                            decode_shared_bytes(*call.decode, args.num_seqs), call.decode->key.heads);
  const bool is_fixed = runtime.splits == KVSplits::kFixed;
  lay_out(call, call.decode_stage, args, runtime, is_fixed ? most : decode_groups(call, args, device, most));
  // Where many row tiles have a few parts each, a warp a row folds them; where few have many, warps share a row. Fixed
  // splits are folded in one way whatever the batch.
  const std::int64_t jobs = std::min<std::int64_t>(split.shape.num_entries, split.shape.num_groups);
  if (!is_fixed && jobs * args.kv.num_kv_heads >= device.multiprocessors / 2) {
    split.combine_rows = (split.combine_rows + 7) / 8;
    // Beside a wide kernel a multiprocessor has room for one block: more would run after those that end last.
    const std::int64_t blocks = jobs * args.kv.num_kv_heads * split.combine_rows;
    while (call.decode->key.heads > 1 && args.kv.num_kv_heads % (2 * split.combine_heads) == 0 &&
           blocks > device.multiprocessors * std::int64_t{split.combine_heads}) {
      split.combine_heads *= 2;
    }
  }
}

void lay_out_tile(Call& call, const AttentionArgs& args, const Runtime& runtime, const Context& device) {
  SplitParams& split = call.tile_stage.split;
  split.slot_rows = call.tile->rows;
  split.stream_rows = call.tile->rows / args.kv.num_streams;
  if (call.decode != nullptr) split.shape.min_rows = call.decode_rows + 1;
  split.shape.tokens_per_tile = split.stream_rows / group_size(args);
  split.shape.num_entries = args.num_tokens / split.shape.tokens_per_tile + args.num_seqs;
  split.shape.unit_keys = call.tile->keys;
  const std::int64_t tiles =
      std::max<std::int64_t>(ceil_div(call.bounds.longest_query, split.shape.tokens_per_tile), 1);
  if (tiles <= kMaxSideBySide) {
    split.shape.tiles_per_seq = static_cast<std::int32_t>(tiles);
    split.shape.num_entries = split.shape.tiles_per_seq * args.num_seqs;
    split.shape.planned_rows = split.shape.tiles_per_seq * split.shape.tokens_per_tile * group_size(args);
  } else if (call.tile->uses_wgmma && runtime.splits != KVSplits::kFixed) {
    split.shape.tile_units = kTileUnits;
  }
  if (call.tile->uses_wgmma) call.tile_stage.entries = take(call, split.shape.num_entries * kTileEntryBytes);
  split.combine_rows = split.stream_rows / 4;
  lay_out(call, call.tile_stage, args, runtime,
          resident_groups(device, args, call.tile->blocks, call.tile->shared_bytes, 1));
  // Groups then read the same keys at a time; many equal requests gain more by shares that begin and end with them.
  const std::int64_t groups = split.shape.num_groups;
  split.shape.deals_tiles =
      split.shape.tiles_per_seq == 0 && !is_small(split.shape) &&
      (tiles >= kDealtTiles * groups || call.bounds.longest_query * groups >= kDealtTiles * args.num_tokens);
  if (runtime.splits == KVSplits::kFixed) return;  // folded in one way whatever the batch
  // As many blocks as the device holds at a time, as most of them often have nothing to fold, and as rows need.
  const std::int64_t rows =
      std::min<std::int64_t>(call.bounds.longest_query * std::int64_t{split.shape.group}, split.stream_rows);
  const std::int64_t jobs = std::min(split.shape.num_entries, split.shape.num_groups) * args.kv.num_kv_heads;
  const std::int64_t most = rows <= split.combine_rows ? rows : ceil_div(rows, kCombineWarps);
  const std::int64_t fitting = kCombineBlocks * device.multiprocessors / jobs;
  split.combine_rows = static_cast<std::int32_t>(std::max<std::int64_t>(std::min(fitting, most), 1));
}

}  // namespace

Call plan_call(const AttentionArgs& args, const AttentionPlan& plan, const Runtime& runtime, const Context& device,
               Choice choice) {
  // With fixed splits it must not depend on the batch which kernel runs.
  if (runtime.splits == KVSplits::kFixed) choice.decode = DecodeChoice::kNarrow;
  Call call;
  call.bounds = bounds_of(args, plan);
  if (fits_split(args)) {
    choose_decode(call, args, device, choice.decode, choice.tile);
    if (call.has_rest(args)) choose_tile(call, args, device, choice.tile);
  }
  const std::int64_t values = static_cast<std::int64_t>(args.num_tokens) * args.num_q_heads * args.kv.head_size_v;
  if (is_differential(args) && call.uses_plain(args)) call.stream_rows = take(call, 2 * values * kFloatBytes);
  if (args.output_block_scale != nullptr) call.output_rows = take(call, values * kFloatBytes);
  if (call.decode != nullptr) lay_out_decode(call, args, runtime, device);
  if (call.tile != nullptr) lay_out_tile(call, args, runtime, device);
  return call;
}

}  // namespace quire::cuda
