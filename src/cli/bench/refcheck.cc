// The float64 check of benchmark outputs.
#include "cli/bench/refcheck.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "core/checked.h"
#include "core/convert.h"

namespace quire::cli {
namespace {

struct SampledRow {
  std::size_t request = 0;
  std::int32_t token = 0;     // inside the request
  std::int64_t row = 0;       // of query and output
  std::int32_t position = 0;  // inside the sequence
};

std::vector<SampledRow> sample_rows(const std::vector<BatchRequest>& batch) {
  std::set<std::size_t> requests = {0, batch.size() / 2, batch.size() - 1};
  std::vector<SampledRow> rows;
  std::int64_t start = 0;
  for (std::size_t i = 0; i < batch.size(); start += batch[i++].query_len) {
    if (!requests.contains(i)) continue;
    const std::int32_t context = batch[i].seq_len - batch[i].query_len;
    for (const std::int32_t token : std::set<std::int32_t>{batch[i].query_len / 2, batch[i].query_len - 1}) {
      rows.push_back({.request = i, .token = token, .row = start + token, .position = context + token});
    }
  }
  return rows;
}

// Squared-error limits: two roundings of the output and one of the weights, with room for long sums.
double nmse_limit(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return 1e-10;
    case DType::kFloat16:
      return 2e-6;
    default:
      return 5e-5;
  }
}

// One row of bytes a token; what the reference is asked and what it answers.
struct RowBatch {
  std::vector<std::byte> query, output;
  std::vector<std::int32_t> query_start_loc, seq_lens, block_table;
};

RowBatch gather(const BenchProblem::HostView& view, const std::vector<SampledRow>& rows) {
  RowBatch out;
  const TensorView& query = view.query;
  const TensorView& table = view.block_table;
  const std::int64_t row_bytes = query.stride(0) * dtype_bytes(query.dtype);
  out.query_start_loc.push_back(0);
  for (const SampledRow& row : rows) {
    const auto* first = query.as<const std::byte>() + row.row * row_bytes;
    out.query.insert(out.query.end(), first, first + row_bytes);
    out.query_start_loc.push_back(out.query_start_loc.back() + 1);
    out.seq_lens.push_back(row.position + 1);
    const auto* blocks = table.as<const std::int32_t>() + static_cast<std::int64_t>(row.request) * table.size(1);
    out.block_table.insert(out.block_table.end(), blocks, blocks + table.size(1));
  }
  out.output.resize(rows.size() * static_cast<std::size_t>(view.output.stride(0) * dtype_bytes(view.output.dtype)));
  return out;
}

Status run_reference(const BenchProblem& problem, const BenchProblem::HostView& view, RowBatch& batch) {
  const auto count = static_cast<std::int64_t>(batch.seq_lens.size());
  const Runtime reference{.backplane = Backplane::kReference};
  ImplConfig impl_config = problem.impl_config();
  impl_config.runtime = reference;
  BuilderConfig builder_config = problem.builder_config();
  builder_config.runtime = reference;
  QUIRE_ASSIGN_OR_RETURN(const auto impl, problem.backend().make_impl(impl_config));
  QUIRE_ASSIGN_OR_RETURN(const auto builder, problem.backend().make_builder(builder_config));
  CommonAttentionMetadata common;
  common.query_start_loc_cpu = batch.query_start_loc;
  common.seq_lens_cpu = batch.seq_lens;
  common.num_reqs = static_cast<std::int32_t>(count);
  common.num_actual_tokens = static_cast<std::int32_t>(count);
  common.max_query_len = 1;
  common.max_seq_len = *std::max_element(batch.seq_lens.begin(), batch.seq_lens.end());
  QUIRE_ASSIGN_OR_RETURN(common.block_table_tensor,
                         make_tensor(batch.block_table.data(), DType::kInt32, {count, view.block_table.size(1)}));
  QUIRE_ASSIGN_OR_RETURN(const AttentionMetadata metadata, builder->build(0, common));
  const TensorView& query = view.query;
  const TensorView& output = view.output;
  ForwardArgs args;
  QUIRE_ASSIGN_OR_RETURN(args.query,
                         make_tensor(batch.query.data(), query.dtype, {count, query.size(1), query.size(2)}));
  QUIRE_ASSIGN_OR_RETURN(args.output,
                         make_tensor(batch.output.data(), output.dtype, {count, output.size(1), output.size(2)}));
  args.kv_cache = view.cache;
  args.metadata = &metadata;
  const PageBuffer workspace(impl->workspace_bytes(metadata));
  args.workspace = workspace.bytes();
  return impl->forward(problem.layer(), args);
}

}  // namespace

Result<RefCheck> check_against_reference(const BenchProblem& problem) {
  const BenchOp op = problem.config().op;
  if (problem.config().tree_nodes > 0 || (op != BenchOp::kAttention && op != BenchOp::kCascade)) {
    return unsupported("refcheck: want causal attention, got a tree or a cache update");
  }
  const std::vector<SampledRow> rows = sample_rows(problem.batch());
  QUIRE_ASSIGN_OR_RETURN(const BenchProblem::HostView view, problem.host_view());
  RowBatch batch = gather(view, rows);
  QUIRE_RETURN_IF_ERROR(run_reference(problem, view, batch));
  const TensorView& output = view.output;
  double error = 0.0;
  double answer = 0.0;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    for (std::int64_t column = 0; column < output.stride(0); ++column) {
      const double got = load_as_float(output.data, output.dtype, rows[i].row * output.stride(0) + column);
      const double want =
          load_as_float(batch.output.data(), output.dtype, static_cast<std::int64_t>(i) * output.stride(0) + column);
      error += (got - want) * (got - want);
      answer += want * want;
    }
  }
  return RefCheck{.rows = static_cast<std::int32_t>(rows.size()),
                  .nmse = error == 0.0 ? 0.0 : error / answer,
                  .limit = nmse_limit(problem.config().dtype)};
}

}  // namespace quire::cli
