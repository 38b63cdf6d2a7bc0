// Runs the work items of a plan on OpenMP threads, then the merges, then the block scales.
#include "cpu/attention.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <string>

#include "core/checked.h"
#include "cpu/kernel_table.h"
#include "cpu/workspace.h"
#include "variant/logit.h"

namespace quire::cpu {
namespace {

constexpr std::size_t kAlign = 64;

bool is_exact_in_bf16(DType dtype) { return dtype == DType::kBFloat16 || is_float8(dtype) || dtype == DType::kInt8; }

// bfloat16 products where no operand loses a bit by it and the caller's own precision is no better.
Compute choose_compute(const AttentionArgs& args, const KernelTable& table) {
  const bool is_bf16 =
      args.query_dtype == DType::kBFloat16 ||
      (is_float8(args.query_dtype) && (args.output_dtype == DType::kBFloat16 || is_float8(args.output_dtype)));
  return table.has_bf16 && is_bf16 && is_exact_in_bf16(args.kv.dtype) ? Compute::kBFloat16 : Compute::kFloat32;
}

Call make_call(const AttentionArgs& args, const KernelTable& table) {
  const KVSource& kv = args.kv;
  Call call{.args = &args, .compute = choose_compute(args, table)};
  call.group_size = args.num_q_heads / kv.num_streams / kv.num_kv_heads;
  call.query_dwords = call.compute == Compute::kFloat32 ? kv.head_size : (kv.head_size + 1) / 2;
  call.value_pad = static_cast<std::int32_t>(round_up(kv.head_size_v, kColumnPad));
  call.columns = kv.num_streams * call.value_pad;
  call.weight_sets = kv.num_streams == 2 && kv.value[0].scales != nullptr ? 2 : 1;
  return call;
}

// How many kv_heads a task takes. Few rows (decode) take many, because only whole tokens, not single heads of them, are
// long runs of memory; but every thread should still get several tasks.
std::int32_t choose_heads(const AttentionArgs& args, const AttentionPlan& plan, const WorkspaceShape& shape) {
  constexpr std::int64_t kTasksPerThread = 4;
  constexpr std::int64_t kMaxRows = 64;
  const std::int64_t rows = round_up(static_cast<std::int64_t>(shape.chunk_rows) * args.kv.num_streams, kRowPad);
  std::int32_t heads = std::min(args.kv.num_kv_heads, kMaxChunkHeads);
  if (rows > kMaxRows) return 1;
  const auto items = static_cast<std::int64_t>(plan.items.size());
  const auto tasks = [&] { return items * ceil_div(args.kv.num_kv_heads, heads); };
  while (heads > 1 && (rows * heads > kMaxChunkRows || tasks() < kTasksPerThread * shape.num_threads)) {
    heads = (heads + 1) / 2;
  }
  return heads;
}

WorkspaceShape make_shape(const AttentionArgs& args, const AttentionPlan& plan, const Runtime& runtime,
                          const KernelTable& table) {
  WorkspaceShape shape{.call = make_call(args, table)};
  const std::int64_t streams = args.kv.num_streams;
  std::int64_t tokens = 0;
  for (const WorkItem& item : plan.items) tokens = std::max<std::int64_t>(tokens, item.token_count);
  for (const MergeItem& merge : plan.merges) tokens = std::max<std::int64_t>(tokens, merge.token_count);
  shape.chunk_rows =
      static_cast<std::int32_t>(std::min<std::int64_t>(tokens * shape.call.group_size, kMaxChunkRows / streams));
  shape.num_threads = std::max(runtime.num_threads > 0 ? runtime.num_threads : omp_get_max_threads(), 1);
  shape.chunk_heads = choose_heads(args, plan, shape);
  shape.partial_rows = static_cast<std::int64_t>(plan.num_partials) * args.kv.num_kv_heads * plan.max_partial_tokens *
                       shape.call.group_size * streams;
  return shape;
}

// What the parts of one call share.
struct Context {
  Call call;
  const AttentionPlan& plan;
  const KernelTable& kernels;
  std::int32_t chunk_rows = 0;
  std::int32_t chunk_heads = 1;
  RowState partials{};
};

// Rows of one partial slot of one kv_head, all streams.
std::int64_t slot_rows(const Context& context) {
  return static_cast<std::int64_t>(context.plan.max_partial_tokens) * context.call.group_size *
         context.call.args->kv.num_streams;
}

Partial partial_of(const Context& context, std::int32_t slot, const Chunk& chunk, std::int32_t row) {
  const std::int64_t stream_rows = static_cast<std::int64_t>(context.plan.max_partial_tokens) * context.call.group_size;
  const std::int64_t index = static_cast<std::int64_t>(slot) * context.call.args->kv.num_kv_heads + chunk.kv_head;
  return {context.partials, index * slot_rows(context) + row, slot_rows(context), stream_rows};
}

// The rows of an item from its row-th, at most chunk_rows.
Chunk chunk_at(const Context& context, const WorkItem& item, KeyRange heads, std::int32_t row) {
  const AttentionArgs& args = *context.call.args;
  const std::int32_t group = context.call.group_size;
  const std::int32_t seq_len = args.seq_lens[item.seq];
  Chunk chunk{.seq = item.seq, .kv_head = heads.begin, .num_heads = heads.end - heads.begin};
  chunk.context_len = seq_len - (args.query_start_loc[item.seq + 1] - args.query_start_loc[item.seq]);
  chunk.first_row = item.token_begin * group + row;
  chunk.num_rows = std::min(context.chunk_rows, item.token_count * group - row);
  const Terms terms = terms_of(args.variant, item.seq);
  const RowSpan span{chunk.first_row / group, (chunk.first_row + chunk.num_rows - 1) / group, chunk.context_len};
  chunk.keys = fold_clip(terms, {std::max(item.kv_begin, 0), std::min(item.kv_end, seq_len)}, span);
  if (chunk.keys.is_empty()) chunk.keys = {0, 0};
  chunk.interior = fold_interior(terms, chunk.keys, span);
  return chunk;
}

// Calls run(chunk, first row inside the item) for pieces of at most chunk_rows rows; `heads` are the kv_heads.
template <class Function>
void for_each_chunk(const Context& context, const WorkItem& item, KeyRange heads, Function&& run) {
  const std::int32_t rows = item.token_count * context.call.group_size;
  for (std::int32_t row = 0; row < rows; row += context.chunk_rows) run(chunk_at(context, item, heads, row), row);
}

// An item and the kv_heads that a task takes of it.
struct Task {
  const WorkItem& item;
  KeyRange heads{};
};

Task task_at(const Context& context, std::int64_t index) {
  const std::int32_t heads = context.call.args->kv.num_kv_heads;
  const std::int64_t parts = ceil_div(heads, context.chunk_heads);
  const auto first = static_cast<std::int32_t>(index % parts) * context.chunk_heads;
  return {context.plan.items[static_cast<std::size_t>(index / parts)],
          {first, std::min(first + context.chunk_heads, heads)}};
}

// Runs task `index`; `next` is the thread's next one, or -1.
void run_task(const Context& context, const Scratch& scratch, std::int64_t index, std::int64_t next) {
  const Task task = task_at(context, index);
  const std::int32_t rows = task.item.token_count * context.call.group_size;
  Chunk ahead;
  if (next >= 0) {
    const Task after = task_at(context, next);
    ahead = chunk_at(context, after.item, after.heads, 0);
  }
  for_each_chunk(context, task.item, task.heads, [&](Chunk chunk, std::int32_t row) {
    if (next >= 0 && row + context.chunk_rows >= rows) chunk.next = &ahead;
    const Partial partial = task.item.partial >= 0 ? partial_of(context, task.item.partial, chunk, row) : Partial{};
    context.kernels.attend(context.call, chunk, scratch, partial);
  });
}

void run_merge(const Context& context, const Scratch& scratch, std::int64_t index) {
  const std::int32_t heads = context.call.args->kv.num_kv_heads;
  const MergeItem& merge = context.plan.merges[static_cast<std::size_t>(index / heads)];
  const WorkItem rows{.seq = merge.seq, .token_begin = merge.token_begin, .token_count = merge.token_count};
  const std::int64_t step = slot_rows(context) * heads;
  const auto head = static_cast<std::int32_t>(index % heads);
  for_each_chunk(context, rows, {head, head + 1}, [&](const Chunk& chunk, std::int32_t row) {
    context.kernels.merge(context.call, chunk, scratch, partial_of(context, merge.first_partial, chunk, row), step,
                          merge.num_partials);
  });
}

void run_all(const Context& context, const WorkspaceShape& shape, const Workspace& workspace) {
  const std::int64_t heads = context.call.args->kv.num_kv_heads;
  const std::int64_t items =
      static_cast<std::int64_t>(context.plan.items.size()) * ceil_div(heads, context.chunk_heads);
  const std::int64_t merges = static_cast<std::int64_t>(context.plan.merges.size()) * heads;
  const std::int64_t tokens = context.call.block_rows != nullptr ? context.call.args->num_tokens : 0;
  const int threads = static_cast<int>(std::clamp<std::int64_t>(std::max(items, merges), 1, shape.num_threads));
  if (threads == 1) {  // a parallel region costs system calls even where it has one thread
    const ThreadScratch mine(shape, workspace.threads);
    for (std::int64_t i = 0; i < items; ++i) run_task(context, mine.scratch, i, i + 1 < items ? i + 1 : -1);
    for (std::int64_t i = 0; i < merges; ++i) run_merge(context, mine.scratch, i);
    for (std::int64_t token = 0; token < tokens; ++token) context.kernels.quantize_blocks(context.call, token);
    return;
  }
  std::atomic<std::int64_t> taken{0};
#pragma omp parallel num_threads(threads)
  {
    const auto thread = static_cast<std::size_t>(omp_get_thread_num());
    const ThreadScratch mine(shape, workspace.threads + thread * workspace.thread_bytes);
    // Each thread takes a task ahead, so that it can fetch the first keys of the next one.
    for (std::int64_t next = taken++; next < items;) {
      const std::int64_t task = next;
      next = taken++;
      run_task(context, mine.scratch, task, next < items ? next : -1);
    }
#pragma omp barrier
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t i = 0; i < merges; ++i) run_merge(context, mine.scratch, i);
#pragma omp for schedule(static)
    for (std::int64_t token = 0; token < tokens; ++token) context.kernels.quantize_blocks(context.call, token);
  }
}

Status check_dtype(std::string_view name, DType got, bool is_known) {
  if (is_known) return {};
  return unsupported(std::string(name) + ": the CPU kernels have no " + std::string(dtype_name(got)));
}

Status check_dtypes(const AttentionArgs& args) {
  const DType kv = args.kv.dtype;
  const bool is_scaled = args.output_scale > 0.0f || args.output_block_scale != nullptr;
  QUIRE_RETURN_IF_ERROR(
      check_dtype("query.dtype", args.query_dtype, is_activation(args.query_dtype) || is_float8(args.query_dtype)));
  QUIRE_RETURN_IF_ERROR(check_dtype("kv.dtype", kv, is_activation(kv) || is_float8(kv) || kv == DType::kInt8));
  if (args.output_dtype == DType::kFloat8E4M3 && !is_scaled) {
    return invalid_argument("output_scale: want a scale > 0 or block scales for a float8_e4m3fn output, got neither");
  }
  return check_dtype("output.dtype", args.output_dtype,
                     args.output_dtype == DType::kFloat8E4M3 || (is_activation(args.output_dtype) && !is_scaled));
}

}  // namespace

std::size_t attention_workspace_bytes(const AttentionArgs& args, const AttentionPlan& plan, const Runtime& runtime) {
  const KernelTable* kernels = kernel_table(runtime.isa);
  if (kernels == nullptr) return 0;
  const std::size_t bytes = Workspace(make_shape(args, plan, runtime, *kernels), nullptr).total_bytes;
  return bytes > std::numeric_limits<std::size_t>::max() - kAlign ? bytes : bytes + kAlign;
}

Status attention(const AttentionArgs& args, const AttentionPlan& plan, const Runtime& runtime,
                 std::span<std::byte> workspace) {
  const KernelTable* kernels = kernel_table(runtime.isa);
  if (kernels == nullptr) {
    return unsupported("isa: this processor or build has no " + std::string(isa_name(runtime.isa)));
  }
  QUIRE_RETURN_IF_ERROR(check_dtypes(args));
  const WorkspaceShape shape = make_shape(args, plan, runtime, *kernels);
  const std::size_t wanted = attention_workspace_bytes(args, plan, runtime);
  if (workspace.size() < wanted) {
    return resource_exhausted("workspace: want " + std::to_string(wanted) + " bytes, got " +
                              std::to_string(workspace.size()));
  }
  if (plan.items.empty()) return {};
  const std::size_t misfit = reinterpret_cast<std::uintptr_t>(workspace.data()) % kAlign;
  const Workspace layout(shape, workspace.data() + (misfit == 0 ? 0 : kAlign - misfit));
  Context context{.call = shape.call, .plan = plan, .kernels = *kernels, .chunk_rows = shape.chunk_rows};
  context.chunk_heads = shape.chunk_heads;
  context.call.block_rows = layout.block_rows;
  context.partials = {layout.partial_largest, layout.partial_sum, layout.partial_values};
  run_all(context, shape, layout);
  return {};
}

}  // namespace quire::cpu
