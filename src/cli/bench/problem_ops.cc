// The operations of a benchmark besides a layer's attention: cache updates and cascade attention.
#include <array>
#include <cmath>

#include "cli/bench/problem.h"
#include "core/convert.h"

namespace quire::cli {
namespace {

constexpr std::array<std::string_view, 4> kOpNames = {"attention", "cache-update", "rope-cache-update", "cascade"};

}  // namespace

std::string_view bench_op_name(BenchOp op) { return kOpNames[static_cast<std::size_t>(op)]; }

Result<BenchOp> parse_bench_op(std::string_view name) {
  for (std::size_t i = 0; i < kOpNames.size(); ++i) {
    if (kOpNames[i] == name) return static_cast<BenchOp>(i);
  }
  return invalid_argument("op: want one of attention, cache-update, rope-cache-update, cascade, got " +
                          std::string(name));
}

Status BenchProblem::check_common_prefix() const {
  const std::int32_t prefix = config_.common_prefix;
  if (config_.op == BenchOp::kCascade && prefix == 0) {
    return invalid_argument("common-prefix: want at least one block of tokens for cascade, got 0");
  }
  if (prefix < 0 || (prefix > 0 && prefix % config_.block_size != 0)) {
    return invalid_argument("common-prefix: want a multiple of the block size " + std::to_string(config_.block_size) +
                            ", got " + std::to_string(prefix));
  }
  for (const BatchRequest& request : batch_) {
    if (request.seq_len - request.query_len >= prefix) continue;
    return invalid_argument("common-prefix: want it inside every request's context, got " + std::to_string(prefix) +
                            " with a context of " + std::to_string(request.seq_len - request.query_len));
  }
  return {};
}

// New rows, their positions, and the table of angles.
Status BenchProblem::make_update() {
  const std::int64_t tokens = query_start_loc_.back();
  const std::int64_t heads = config_.num_kv_heads;
  QUIRE_ASSIGN_OR_RETURN(key_, make_random(key_data_, {tokens, heads, config_.head_size}, config_.seed + 4));
  QUIRE_ASSIGN_OR_RETURN(value_, make_random(value_data_, {tokens, heads, config_.head_size_v}, config_.seed + 5));
  if (config_.op != BenchOp::kRopeCacheUpdate) return {};
  std::vector<std::int64_t> positions;
  std::int64_t longest = 1;
  for (const BatchRequest& request : batch_) {
    for (std::int64_t row = 0; row < request.query_len; ++row) {
      positions.push_back(request.seq_len - request.query_len + row);
    }
    longest = std::max<std::int64_t>(longest, request.seq_len);
  }
  const std::int64_t half = config_.head_size / 2;
  std::vector<std::byte> angles(static_cast<std::size_t>(longest * 2 * half * dtype_bytes(config_.dtype)));
  for (std::int64_t position = 0; position < longest; ++position) {
    for (std::int64_t i = 0; i < half; ++i) {
      const double angle =
          static_cast<double>(position) * std::pow(10000.0, -static_cast<double>(i) / static_cast<double>(half));
      const std::int64_t at = position * 2 * half + i;
      store_from_float(angles.data(), config_.dtype, at, static_cast<float>(std::cos(angle)));
      store_from_float(angles.data(), config_.dtype, at + half, static_cast<float>(std::sin(angle)));
    }
  }
  const std::size_t position_bytes = positions.size() * sizeof(std::int64_t);
  QUIRE_ASSIGN_OR_RETURN(angle_data_, BenchBuffer::allocate(angles.size(), config_.runtime));
  QUIRE_ASSIGN_OR_RETURN(position_data_, BenchBuffer::allocate(position_bytes, config_.runtime));
  QUIRE_RETURN_IF_ERROR(angle_data_.write(angles.data(), angles.size()));
  QUIRE_RETURN_IF_ERROR(position_data_.write(positions.data(), position_bytes));
  rope_.query = query_;
  QUIRE_ASSIGN_OR_RETURN(rope_.positions,
                         make_tensor(position_data_.data(), DType::kInt64, {tokens}, position_data_.device()));
  QUIRE_ASSIGN_OR_RETURN(rope_.cos_sin_cache,
                         make_tensor(angle_data_.data(), config_.dtype, {longest, 2 * half}, angle_data_.device()));
  return {};
}

// The slots of the new tokens, the last of each request.
Status BenchProblem::make_slots(Copy& copy, std::int64_t width) {
  std::vector<std::int64_t> slots;
  for (std::size_t seq = 0; seq < batch_.size(); ++seq) {
    const auto* row = copy.blocks.data() + static_cast<std::int64_t>(seq) * width;
    for (std::int64_t position = batch_[seq].seq_len - batch_[seq].query_len; position < batch_[seq].seq_len;
         ++position) {
      slots.push_back(std::int64_t{row[position / config_.block_size]} * config_.block_size +
                      position % config_.block_size);
    }
  }
  const std::size_t bytes = slots.size() * sizeof(std::int64_t);
  QUIRE_ASSIGN_OR_RETURN(copy.slot_data, BenchBuffer::allocate(bytes, config_.runtime));
  QUIRE_RETURN_IF_ERROR(copy.slot_data.write(slots.data(), bytes));
  QUIRE_ASSIGN_OR_RETURN(copy.slots, make_tensor(copy.slot_data.data(), DType::kInt64,
                                                 {static_cast<std::int64_t>(slots.size())}, copy.slot_data.device()));
  return {};
}

// Prepared arguments of the layer, for operations below the backends.
Result<AttentionArgs> BenchProblem::attention_args(const Copy& copy) const {
  const bool on_device = config_.runtime.backplane == Backplane::kCuda;
  AttentionArgs args;
  args.query = query_.data;
  args.query_dtype = query_.dtype;
  args.query_token_stride = query_.stride(0);
  args.query_head_stride = query_.stride(1);
  args.output = output_.data;
  args.output_dtype = output_.dtype;
  args.output_token_stride = output_.stride(0);
  args.output_head_stride = output_.stride(1);
  args.num_seqs = static_cast<std::int32_t>(batch_.size());
  args.num_tokens = query_start_loc_.back();
  args.num_q_heads = config_.num_heads;
  const AttentionMetadata& metadata = copy.metadata;
  args.query_start_loc =
      on_device ? metadata.query_start_loc_device.as<std::int32_t>() : metadata.query_start_loc.data();
  args.seq_lens = on_device ? metadata.seq_lens_device.as<std::int32_t>() : metadata.seq_lens.data();
  QUIRE_ASSIGN_OR_RETURN(args.kv, bind_kv_cache(spec(), cache_, layer_.kv_scales));
  args.kv.block_table = copy.block_table.as<std::int32_t>();
  args.kv.block_table_stride = copy.block_table.stride(0);
  const ImplConfig layer = impl_config();
  args.variant.scale = layer.scale;
  args.variant.softcap = layer.logits_soft_cap.value_or(0.0f);
  return args;
}

Status BenchProblem::make_cascade(Copy& copy, std::size_t& workspace_bytes) {
  if (config_.alibi || config_.sinks || config_.sliding_window) {
    return unsupported("op: cascade is measured without ALiBi, sinks and window");
  }
  QUIRE_ASSIGN_OR_RETURN(AttentionArgs args, attention_args(copy));
  AttentionArgs on_host = args;  // plans are made from host arrays
  on_host.query_start_loc = query_start_loc_.data();
  on_host.seq_lens = seq_lens_.data();
  on_host.kv.block_table = copy.blocks.data();
  QUIRE_ASSIGN_OR_RETURN(copy.cascade, make_cascade_plan(on_host, config_.common_prefix, copy.metadata.plan_config));
  QUIRE_RETURN_IF_ERROR(place_cascade_plan(copy.cascade, config_.runtime));
  workspace_bytes = std::max(workspace_bytes, cascade_workspace_bytes(args, copy.cascade, config_.runtime));
  return {};
}

}  // namespace quire::cli
