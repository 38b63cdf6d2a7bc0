// What benchmark operations cost, and how the host gets to see what they left.
#include <algorithm>

#include "cli/bench/problem.h"

namespace quire::cli {
namespace {

// The first key that a query at `position` sees.
std::int64_t first_visible(const BenchConfig& config, std::int64_t position) {
  return config.sliding_window ? std::max<std::int64_t>(0, position - *config.sliding_window + 1) : 0;
}

// Bytes that the cache keeps of one token.
double stored_bytes(const BenchConfig& config) {
  const double elements = static_cast<double>(config.num_kv_heads) * (config.head_size + config.head_size_v);
  const double bytes =
      elements * static_cast<double>(dtype_bytes(kv_storage_dtype(config.kv_cache_dtype, config.dtype)));
  return is_per_token_head(config.kv_cache_dtype) ? bytes + 8.0 * config.num_kv_heads : bytes;
}

}  // namespace

void BenchProblem::count_work() {
  const bool differential = backend_->kv_cache_format() == KVCacheFormat::kDifferential;
  const double value_columns = config_.head_size_v * (differential ? 2.0 : 1.0);
  const double flops_of_pair = 2.0 * config_.num_heads * (config_.head_size + value_columns);
  const double key_bytes = stored_bytes(config_);
  const double row_bytes = static_cast<double>(config_.num_heads) * (config_.head_size + config_.head_size_v) *
                           static_cast<double>(dtype_bytes(config_.dtype));
  work_ = {};
  for (const BatchRequest& request : batch_) {
    const std::int64_t context = request.seq_len - request.query_len;
    for (std::int64_t row = 0; row < request.query_len; ++row) {
      const std::int64_t position = context + row;
      work_.flops += flops_of_pair * static_cast<double>(position + 1 - first_visible(config_, position));
    }
    const std::int64_t shared = &request == batch_.data() ? 0 : config_.common_prefix;
    work_.bytes += key_bytes * static_cast<double>(request.seq_len - first_visible(config_, context) - shared);
    work_.bytes += row_bytes * request.query_len;
  }
}

// New rows read and stored; with rotation queries and keys are written back too, and a table row is read a token.
void BenchProblem::count_update() {
  double tokens = 0.0;
  for (const BatchRequest& request : batch_) tokens += request.query_len;
  const auto element = static_cast<double>(dtype_bytes(config_.dtype));
  const double key_row = static_cast<double>(config_.num_kv_heads) * config_.head_size * element;
  const double value_row = static_cast<double>(config_.num_kv_heads) * config_.head_size_v * element;
  work_ = {};
  work_.bytes = tokens * (key_row + value_row + stored_bytes(config_) + sizeof(std::int64_t));
  if (config_.op != BenchOp::kRopeCacheUpdate) return;
  const double query_row = static_cast<double>(config_.num_heads) * config_.head_size * element;
  work_.bytes += tokens * (2.0 * query_row + key_row + config_.head_size * element + sizeof(std::int64_t));
}

Result<BenchProblem::HostView> BenchProblem::host_view() const {
  const Copy& copy = copies_[last_];
  HostView view{.query = query_, .output = output_, .cache = cache_, .block_table = copy.block_table, .owned = {}};
  if (config_.runtime.backplane != Backplane::kCuda) return view;
  const auto fetch = [&](TensorView& tensor, const BenchBuffer& from) -> Status {
    PageBuffer& host = view.owned.emplace_back(from.bytes().size());
    if (host.data() == nullptr) return resource_exhausted("refcheck: no memory for a copy of the device's");
    tensor.data = host.data();
    tensor.device = {};
    return from.read(host.data(), from.bytes().size());
  };
  QUIRE_RETURN_IF_ERROR(fetch(view.query, query_data_));
  QUIRE_RETURN_IF_ERROR(fetch(view.output, output_data_));
  QUIRE_RETURN_IF_ERROR(fetch(view.cache, cache_data_));
  QUIRE_RETURN_IF_ERROR(fetch(view.block_table, copy.table_data));
  return view;
}

}  // namespace quire::cli
